"""The ctypes side of the runtime, which abi.py reads from the C headers, compared with the C++ compiler."""

import ctypes
import json

import pytest

from fusedref.emulator import SourceModule, abi, runtime
from fusedref.emulator.compile import build
from tests import processes

STRUCTURES = [abi.Parameter, abi.Kernel, abi.Shared, abi.Variable, abi.Module, abi.Error, abi.Report, abi.Site]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Return the compiler's numbers: structure -> [size, offset and size of each field], and every constant."""
    lines = []
    for structure in STRUCTURES:
        name = structure.__name__
        fields = "".join(
            f", offsetof(emu::{name}, {field}), sizeof(emu::{name}::{field})" for field, _ in structure._fields_
        )
        lines.append(f'show("{name}", {{sizeof(emu::{name}){fields}}});')
    lines += [f'show("{name}", {{(unsigned long long)emu::{name}}});' for name in abi.CONSTANTS]
    folder = tmp_path_factory.mktemp("abi")
    (folder / "layouts.cpp").write_text(
        "#include <cstdio>\n#include <initializer_list>\n"
        f'#include "{build.HERE / "native" / "abi.h"}"\n'
        "static void show(const char* name, std::initializer_list<unsigned long long> numbers) {\n"
        '    printf("\\"%s\\": [", name);\n    const char* comma = "";\n'
        '    for (auto number : numbers) printf("%s%llu", comma, number), comma = ", ";\n'
        '    printf("],");\n}\n'
        f'int main() {{ printf("{{"); {" ".join(lines)} printf("\\"end\\": []}}"); }}\n'
    )
    program = folder / "layouts"
    processes.run([*build.compiler().command, "-std=c++17", "-w", "layouts.cpp", "-o", program], cwd=folder, check=True)
    return json.loads(processes.run([program], check=True).stdout)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_structure_has_the_compilers_layout(structure, layouts):
    numbers = [ctypes.sizeof(structure)]
    for name, _ in structure._fields_:
        field = getattr(structure, name)
        numbers += [field.offset, field.size]
    assert numbers == layouts[structure.__name__]


def test_constants_have_the_compilers_values(layouts):
    assert {name: [value] for name, value in abi.CONSTANTS.items()} == {name: layouts[name] for name in abi.CONSTANTS}
    assert abi.SPINNING == 10
    assert abi.MISSING_WAIT == 104
    assert abi.NOWHERE == 2**64 - 1


def test_every_function_is_exported_and_declared():
    library = runtime.library()
    assert len(abi.FUNCTIONS) > 20
    for name, (result, arguments) in abi.FUNCTIONS.items():
        function = getattr(library, name)
        assert (function.restype, list(function.argtypes)) == (result, arguments)
    assert abi.FUNCTIONS["emu_alloc"] == (None, [ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)])
    assert abi.FUNCTIONS["emu_symbol"] == (ctypes.c_char_p, [ctypes.c_void_p])


def test_unknown_constant_is_an_attribute_error():
    with pytest.raises(AttributeError, match="declare no constant NO_SUCH"):
        _ = abi.NO_SUCH


def test_module_is_read_back_through_the_structures():
    module = SourceModule("__global__ void k(char a, double b, const int* c) {}")
    parameters = module.get_function("k")._kernel.parameters
    assert [(p.offset, p.size, p.pointer, p.constant, p.floating, p.element) for p in parameters] == [
        (0, 1, 0, 1, 0, 1),
        (8, 8, 0, 1, 1, 8),
        (16, 8, 1, 1, 0, 4),
    ]
