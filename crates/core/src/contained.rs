//! Panics of other people's readers: what some libraries meet damage with.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside [`contain`]. A program's panic hook asks this, and says nothing then.
pub fn is_contained() -> bool {
    IS_CONTAINED.get()
}

/// Does `work`, and returns a panic in it as an error. What `work` was using may be in any state then, and must not be used again.
///
/// # Errors
/// What the panic carried.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let before = IS_CONTAINED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(before);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_only_inside() {
        let caught = contain(|| -> u8 {
            assert!(is_contained());
            std::panic::panic_any("damaged")
        });
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"damaged"));
        assert!(!is_contained());
        assert_eq!(contain(|| contain(|| 3).unwrap() + u8::from(is_contained())).unwrap(), 4);
    }
}
