"""Two processes with a part of the batch each train as one process with the whole batch does."""

import sys
import textwrap

import pytest
import torch
from torch import nn

from fusedref import FusedConvBnScale
from tests import processes

SCRIPT = """
import copy, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from fusedref import ConvBnScale, FusedConvBnScale

rank, backend, where = int(sys.argv[1]), sys.argv[2], sys.argv[3]
device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
torch.set_num_threads(1)
dist.init_process_group(backend, init_method=f"file://{where}", rank=rank, world_size=2)
if backend == "nccl":
    torch.cuda.set_device(rank)
    torch.backends.cudnn.allow_tf32 = False


def models(**options):
    torch.manual_seed(0)
    reference = ConvBnScale(3, 4, 3, 1.5, padding=1, **options)
    nn.init.uniform_(reference.bn.weight, -2, 2)
    fused = FusedConvBnScale(3, 4, 3, 1.5, padding=1, process_group=dist.group.WORLD, **options)
    assert type(fused.bn) is nn.SyncBatchNorm
    fused.load_state_dict(reference.state_dict())
    return reference.to(device), fused.to(device)


def check(ours, theirs, what):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text: f"{what}: {text}")


def batches(step):
    return torch.randn(5, 3, 6, 5, generator=torch.Generator().manual_seed(step)).to(device) + 10


for sizes in ((2, 3), (4, 1), (5, 0)):
    reference, fused = models()
    for step in range(2):
        whole = batches(step).requires_grad_()
        part = whole.detach().split(sizes)[rank].requires_grad_()
        expected, y = reference(whole), fused(part)
        check(y, expected.split(sizes)[rank], "y")
        for result in (expected, y):
            result.pow(3).mean(dim=(1, 2, 3)).sum().backward()
        check(part.grad, whole.grad.split(sizes)[rank], "dx")
    for (name, parameter), theirs in zip(fused.named_parameters(), reference.parameters(), strict=True):
        total = parameter.grad.clone()
        dist.all_reduce(total)
        check(total, theirs.grad, name)
    for (name, buffer), theirs in zip(fused.named_buffers(), reference.buffers(), strict=True):
        check(buffer, theirs, name)
        others = [torch.empty_like(buffer) for _ in range(2)]
        dist.all_gather(others, buffer)
        assert torch.equal(*others), name

reference, fused = models(momentum=None)
fused.scaling_factor = nn.Parameter(torch.tensor(1.5, device=device))
# DistributedDataParallel takes a SyncBatchNorm on GPUs alone; on CPUs the mean of the gradients is written out.
wrapped = DistributedDataParallel(fused, device_ids=[rank]) if backend == "nccl" else fused
optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (reference, fused)]
for step in range(3):
    whole = batches(step)[:4]
    for model, x, optimizer in zip((reference, wrapped), (whole, whole.split(2)[rank]), optimizers, strict=True):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if model is fused:
            for parameter in fused.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= 2
        optimizer.step()
    fused.scaling_factor.data.fill_(1.5)
for (name, ours), theirs in zip(list(fused.state_dict().items())[1:], reference.state_dict().values(), strict=True):
    check(ours, theirs, name)

x = batches(0)
with torch.no_grad():  # evaluation mode gathers nothing, so one process may be alone in it
    if rank == 0:
        check(fused.eval()(x), reference.eval()(x), "evaluation")

frozen = models()[1].requires_grad_(False)
before = copy.deepcopy(frozen.state_dict())
frozen(x.split((2, 3))[rank])
assert frozen.bn.num_batches_tracked == 1
assert not torch.equal(frozen.bn.running_mean, before["bn.running_mean"])
dist.barrier()
dist.destroy_process_group()
print("agreed")
"""


def two_processes(backend, folder):
    """Run both ranks, each with a time limit, and return what they print."""
    launcher = textwrap.dedent(
        """
        import subprocess, sys
        ranks = [subprocess.Popen([sys.executable, sys.argv[1], str(rank), *sys.argv[2:]]) for rank in range(2)]
        sys.exit(max(abs(rank.wait()) for rank in ranks))
        """
    )
    (folder / "rank.py").write_text(SCRIPT)
    command = [sys.executable, "-c", launcher, folder / "rank.py", backend, folder / "store"]
    done = processes.run(command, env=processes.environment(FUSEDREF_DEVICE=None), limit=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_gloo(tmp_path):
    assert two_processes("gloo", tmp_path).split() == ["agreed", "agreed"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_nccl(tmp_path):
    assert two_processes("nccl", tmp_path).split() == ["agreed", "agreed"]


def test_one_process_alone(device):
    """A SyncBatchNorm without process group is a BatchNorm2d."""
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    results = []
    for layer in (bn, nn.SyncBatchNorm(4)):
        fused = FusedConvBnScale.from_modules(conv, layer, 2.0).to(device)
        x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).to(device)
        results.append([fused(x), fused.eval()(x), layer.running_var, layer.num_batches_tracked])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
