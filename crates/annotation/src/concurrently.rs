//! Several pieces of work at a time, until one of them fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Does `work` for each number below `count`, at most `concurrency` at a time, and returns the results in order. Once one has failed, no
/// other is begun, and the function that `work` gets beside its number says so: those under way should give up waiting.
///
/// # Errors
/// The first error.
pub fn concurrently<T: Send, E: Send>(
    count: usize,
    concurrency: usize,
    work: impl Fn(usize, &dyn Fn() -> bool) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (done, first_error) = (Mutex::new(Vec::new()), Mutex::new(None));
    let stopped = || failed.load(Ordering::Relaxed);
    let worker = || {
        while !stopped() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            match work(number, &stopped) {
                Ok(result) => done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result)),
                Err(error) => {
                    // Before the others give up, whose errors are of no interest.
                    first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    failed.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        (1..concurrency.min(count)).for_each(|_| drop(scope.spawn(worker)));
        worker();
    });
    if let Some(error) = first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_order_and_no_more_are_under_way_than_allowed() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |number: usize, _: &dyn Fn() -> bool| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(if number.is_multiple_of(3) { 20 } else { 1 }));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, ()>(number * number)
        };
        assert_eq!(concurrently(7, 3, work), Ok(vec![0, 1, 4, 9, 16, 25, 36]));
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(concurrently(0, 3, work), Ok(Vec::new()));
    }

    #[test]
    fn after_an_error_nothing_is_begun() {
        let begun = AtomicUsize::new(0);
        let work = |number: usize, stopped: &dyn Fn() -> bool| {
            begun.fetch_add(1, Ordering::SeqCst);
            if number == 1 {
                return Err("the second");
            }
            while !stopped() {
                thread::sleep(Duration::from_millis(1));
            }
            Err("gave up")
        };
        assert_eq!(concurrently::<(), _>(50, 2, work), Err("the second"));
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }
}
