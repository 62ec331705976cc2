// <assert.h> for the emulator: a failed assertion ends the launch. Like the system's, it may be included repeatedly, and
// NDEBUG decides anew each time.
#undef assert
#ifdef NDEBUG
#define assert(e) ((void)0)
#else
#define assert(e) ((e) ? (void)0 : emu_assert_fail(#e, __FILE__, __LINE__, __func__))
#endif
