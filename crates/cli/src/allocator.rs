//! The program's allocator: mimalloc, told to keep what it has. See `docs/decisions/0013-mimalloc.md`.

/// Tensor code allocates a buffer an operation; the system's allocator gives large ones back and faults them in again each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Memory that was freed stays with the process, for the next buffer: given back after mimalloc's usual 10 ms, it would be cleared page by
/// page by the system when it is asked for again. `MIMALLOC_PURGE_DELAY` in the environment wins.
pub fn keep_freed_memory() {
    /// `mi_option_purge_delay` of mimalloc 2 and 3; the bindings do not name it.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: not safe beside other threads, and `main` calls it before there are any.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) };
}
