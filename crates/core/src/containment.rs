//! Panics of other people's readers, kept away from the user.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`. If it panics, the panic ends here, and a hook that asks [`is_contained`] can keep quiet about it. What `work` changed must not be
/// used again then.
///
/// # Errors
/// When it panicked.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outer = CONTAINED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    done.map_err(|_| Panicked)
}

/// That something panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panicked;

/// Whether a panic on this thread is expected and dealt with.
pub fn is_contained() -> bool {
    CONTAINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_where_it_is_contained() {
        assert_eq!(contained(|| 7), Ok(7));
        assert_eq!(contained(|| -> u8 { panic!("expected: {}", is_contained()) }), Err(Panicked));
        assert!(!is_contained());
    }
}
