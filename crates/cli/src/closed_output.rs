//! Standard output that was closed before the program began, as `>&-` in a shell does.
//!
//! Rust's runtime opens /dev/null in its place, for reading and writing, before `main`. So do programs that start others for their files
//! alone, such as Python with `subprocess.DEVNULL`: afterwards nobody can tell who did, so it is looked at before.

/// Whether something can be written to standard output.
///
/// # Errors
/// When it was closed.
pub fn check() -> std::io::Result<()> {
    #[cfg(unix)]
    if before_main::IS_CLOSED.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(std::io::Error::other("it is closed"));
    }
    Ok(())
}

#[cfg(unix)]
mod before_main {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::io::{Errno, fcntl_getfd};

    pub(super) static IS_CLOSED: AtomicBool = AtomicBool::new(false);

    /// The runtime is not there yet: this is one system call and one store.
    extern "C" fn look() {
        IS_CLOSED.store(fcntl_getfd(rustix::stdio::stdout()) == Err(Errno::BADF), Ordering::Relaxed);
    }

    // SAFETY: the loader calls the functions in these sections before `main`, and `look` needs nothing that is set up there.
    #[used]
    #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
    #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
    static LOOK: extern "C" fn() = look;
}
