//! Ranks that are threads of one process: what tests compare with one rank, without MPI.

use std::fmt::{self, Debug, Formatter};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{Ranks, Transport};

/// One thread's ends of the channels to all threads.
struct Thread {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Mutex<Vec<Receiver<Vec<u8>>>>,
}

impl Debug for Thread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} of {}", self.rank, self.to.len())
    }
}

impl Transport for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn name(&self, rank: usize) -> String {
        format!("thread {rank}")
    }

    /// # Panics
    /// When another thread has ended.
    fn exchange(&self, messages: &[&[u8]]) -> Vec<Vec<u8>> {
        let gone = |rank| format!("thread {rank} has ended");
        for (rank, (to, message)) in self.to.iter().zip(messages).enumerate() {
            to.send(message.to_vec()).unwrap_or_else(|_| panic!("{}", gone(rank)));
        }
        let from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        from.iter().enumerate().map(|(rank, from)| from.recv().unwrap_or_else(|_| panic!("{}", gone(rank)))).collect()
    }
}

/// Does `work` on `size` threads, each of which is a rank. Returns what each did, in the order of the ranks.
///
/// # Panics
/// When one of them panics.
pub fn side_by_side<T: Send>(size: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let mut to: Vec<Vec<Sender<Vec<u8>>>> = (0..size).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<Receiver<Vec<u8>>>> = (0..size).map(|_| Vec::new()).collect();
    for sender in &mut to {
        for receiver in &mut from {
            let (sends, receives) = channel();
            sender.push(sends);
            receiver.push(receives);
        }
    }
    let threads = to.into_iter().zip(from).enumerate().map(|(rank, (to, from))| Thread { rank, to, from: Mutex::new(from) });
    let ranks: Vec<Ranks> = threads.map(|thread| Ranks::new(Arc::new(thread))).collect();
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|ranks| scope.spawn(move || work(ranks))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}
