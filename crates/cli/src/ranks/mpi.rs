//! Messages between ranks by MPI. No call of it blocks, so that a rank that waits knows for whom, and for how long.
//!
//! A thread beside the work sends a heartbeat to the first rank, or as the first rank to all, and listens for theirs. A process that died takes all with it
//! by the launcher. One that was stopped, or whose machine is gone, is not heard of: after [`SILENCE`] whoever misses it names it and ends all.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mpi_sys as ffi;
use vp_trainers::ranks::{Ranks, Transport};

use super::Place;
use crate::terminal;

/// The variable that says after how many seconds without a heartbeat a rank is given up.
const SILENCE_VARIABLE: &str = "VP_RANK_SILENCE";
const SILENCE: Duration = Duration::from_secs(20);
/// The variable that says how many seconds a rank waits for another that is alive.
const WAIT_VARIABLE: &str = "VP_RANK_WAIT";
const WAIT: Duration = Duration::from_secs(3600);
/// How often a heartbeat is sent.
const BEAT: Duration = Duration::from_secs(1);
/// How long a rank that waits lets others have the core before it sleeps.
const EAGER: Duration = Duration::from_millis(2);
const NAP: Duration = Duration::from_micros(200);
/// A message travels in pieces of at most so many bytes: MPI counts in 31 bits.
const PIECE: usize = 64 << 20;
/// What launchers tell their processes. Without any of these, the process was started by hand.
const LAUNCHED: [&str; 5] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"];

const LENGTH: c_int = 1;
const CONTENT: c_int = 2;
const HEART: c_int = 3;

/// One call of the library at a time: that much every MPI can do with threads.
static LIBRARY: Mutex<()> = Mutex::new(());
static BEGUN: AtomicBool = AtomicBool::new(false);
static ENDED: AtomicBool = AtomicBool::new(false);

/// Calls the library; `None` after the end, when only the heartbeat still tries.
fn library<T>(call: impl FnOnce() -> T) -> Option<T> {
    let _one = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    (!ENDED.load(Ordering::Relaxed)).then(call)
}

/// The ranks of MPI, if a launcher started this process.
pub(super) fn begun() -> Option<Place> {
    LAUNCHED.iter().any(|name| std::env::var_os(name).is_some()).then_some(())?;
    let (mut rank, mut size, mut threads, mut needed) = (0, 0, 0, 0);
    // What it tells is written before it is read; an error in it ends the process. It is ended by `end` alone: to wait for the others while a
    // panic unwinds would be for ever.
    library(|| {
        // SAFETY: nobody else calls the library before, and it takes no arguments but a level of threading.
        unsafe {
            needed = ffi::RSMPI_THREAD_SERIALIZED;
            ffi::MPI_Init_thread(std::ptr::null_mut(), std::ptr::null_mut(), needed, &mut threads);
            ffi::MPI_Comm_rank(world(), &mut rank);
            ffi::MPI_Comm_size(world(), &mut size);
        }
    });
    BEGUN.store(true, Ordering::Relaxed);
    if threads < needed {
        give_up("this MPI has no support for threads; expected at least MPI_THREAD_SERIALIZED: use another build of it");
    }
    let (rank, size) = (rank as usize, size as usize);
    let mut found = Mpi::new(rank, size);
    let host = host();
    let own = format!("{host}\n{}", std::process::id());
    let told = found.exchange(&vec![own.as_bytes(); size]);
    let told: Vec<(String, String)> = told.iter().map(|bytes| split(bytes)).collect();
    found.names = told.iter().enumerate().map(|(rank, (host, process))| format!("rank {rank} (process {process} on {host})")).collect();
    let local = told[..rank].iter().filter(|(host, _)| *host == told[rank].0).count();
    let found = Arc::new(found);
    if size > 1 {
        let watched = found.clone();
        // Without this thread, the others would take this rank for dead.
        let thread = thread::Builder::new().name("heartbeat".into()).spawn(move || watched.beat());
        thread.unwrap_or_else(|error| give_up(&format!("no thread for the heartbeat: {error}")));
    }
    Some(Place { ranks: Ranks::new(found), local })
}

/// The name of this machine, as the library knows it.
fn host() -> String {
    // More than any library says, and a zero at its end.
    let (mut name, mut length) = ([0u8; 1025], 0);
    // SAFETY: the library writes at most MPI_MAX_PROCESSOR_NAME bytes, which is 256 or less in all that there are.
    library(|| unsafe { ffi::MPI_Get_processor_name(name.as_mut_ptr().cast(), &mut length) });
    String::from_utf8_lossy(&name[..(length.max(0) as usize).min(name.len())]).into_owned()
}

fn split(bytes: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(bytes);
    text.split_once('\n').map_or_else(|| (text.to_string(), String::new()), |(host, process)| (host.into(), process.into()))
}

/// Says goodbye to the library, as all ranks do at the same time. Nothing happens if it was not begun.
pub(super) fn end() {
    if !BEGUN.load(Ordering::Relaxed) {
        return;
    }
    let _one = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    ENDED.store(true, Ordering::Relaxed);
    // The library waits for all ranks, which nobody watches any more: this thread ends the process if they do not come. If it cannot be started,
    // the wait has no end of its own.
    let _ = thread::Builder::new().spawn(|| {
        thread::sleep(SILENCE);
        std::process::abort();
    });
    // SAFETY: the library is initialised, no message of the work is under way, and the heartbeat calls nothing after this.
    unsafe { ffi::MPI_Finalize() };
}

/// Tells why, and ends all ranks.
fn give_up(why: &str) -> ! {
    terminal::complain("error", format_args!("{why}"));
    // Whoever holds the library may be stuck in it.
    for _ in 0..50 {
        if let Ok(_one) = LIBRARY.try_lock() {
            // SAFETY: the library is initialised; the call does not return.
            unsafe { ffi::MPI_Abort(world(), 1) };
        }
        thread::sleep(Duration::from_millis(100));
    }
    std::process::abort()
}

fn world() -> ffi::MPI_Comm {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_COMM_WORLD }
}

/// The ranks that MPI connects, as one of them sees the others.
#[derive(Debug)]
struct Mpi {
    rank: usize,
    size: usize,
    names: Vec<String>,
    began: Instant,
    /// When each rank was last heard of, in milliseconds since the beginning.
    heard: Vec<AtomicU64>,
    silence: Duration,
    wait: Duration,
}

impl Mpi {
    fn new(rank: usize, size: usize) -> Self {
        let seconds = |name: &str, usual| {
            let asked = std::env::var(name).ok().and_then(|text| text.parse::<f64>().ok()).filter(|seconds| *seconds > 0.0);
            asked.map_or(usual, |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(usual))
        };
        Self {
            rank,
            size,
            names: (0..size).map(|rank| format!("rank {rank}")).collect(),
            began: Instant::now(),
            heard: (0..size).map(|_| AtomicU64::new(0)).collect(),
            silence: seconds(SILENCE_VARIABLE, SILENCE),
            wait: seconds(WAIT_VARIABLE, WAIT),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Those whose heartbeats this rank listens to: the first rank to all, all to the first.
    fn listened_to(&self) -> Vec<usize> {
        if self.rank == 0 { (1..self.size).collect() } else { vec![0] }
    }

    /// Sends heartbeats and listens for those of others, to the end of the process.
    fn beat(&self) {
        let others = self.listened_to();
        let mut sent: Vec<Option<Request>> = others.iter().map(|_| None).collect();
        let own = [0u8];
        let mut last = self.now();
        self.heard.iter().for_each(|heard| heard.store(last, Ordering::Relaxed));
        while !ENDED.load(Ordering::Relaxed) {
            for (rank, request) in others.iter().zip(&mut sent) {
                // One is enough that a rank that was stopped does not take.
                if request.as_mut().is_none_or(Request::is_done) {
                    // SAFETY: `own` lives as long as this thread, which ends with the process.
                    *request = Some(unsafe { Request::send(&own, *rank, HEART) });
                }
            }
            self.listen(&others);
            let now = self.now();
            if Duration::from_millis(now - last) > self.silence / 2 {
                // This process itself was stopped, and heard nothing meanwhile.
                self.heard.iter().for_each(|heard| heard.store(now, Ordering::Relaxed));
            }
            last = now;
            let silent =
                |rank: &&usize| Duration::from_millis(now.saturating_sub(self.heard[**rank].load(Ordering::Relaxed))) > self.silence;
            if let Some(rank) = others.iter().find(silent).filter(|_| !ENDED.load(Ordering::Relaxed)) {
                give_up(&format!(
                    "{} has not been heard of for {:.0} s: it was stopped, or its machine or network is gone. All ranks end; the run goes on from its \
                     last checkpoint with --resume, on any number of ranks ({SILENCE_VARIABLE} sets the seconds)",
                    self.names[*rank],
                    self.silence.as_secs_f64()
                ));
            }
            thread::sleep(BEAT);
        }
    }

    /// Takes the heartbeats that have come.
    fn listen(&self, others: &[usize]) {
        for rank in others {
            while library(|| took_heartbeat(*rank)) == Some(true) {
                self.heard[*rank].store(self.now(), Ordering::Relaxed);
            }
        }
    }

    /// Ends all ranks, because what this one waits for does not come.
    fn give_up_waiting(&self, missing: &[usize]) -> ! {
        let names: Vec<&str> = missing.iter().map(|rank| self.names[*rank].as_str()).collect();
        give_up(&format!(
            "{} waited for {:.0} s for {}, which lives but does not come: it hangs, or it does far more than the others. All ranks end; the run \
             goes on from its last checkpoint with --resume ({WAIT_VARIABLE} sets the seconds)",
            self.names[self.rank],
            self.wait.as_secs_f64(),
            names.join(", ")
        ));
    }
}

/// Whether a heartbeat of this rank had come, which is now taken.
fn took_heartbeat(rank: usize) -> bool {
    let (mut there, mut byte) = (0, [0u8]);
    // SAFETY: the buffer has the size of a heartbeat; one that was probed is there, so that receiving it does not block.
    unsafe {
        ffi::MPI_Iprobe(rank as c_int, HEART, world(), &mut there, ffi::RSMPI_STATUS_IGNORE);
        if there != 0 {
            let to = byte.as_mut_ptr().cast();
            ffi::MPI_Recv(to, 1, ffi::RSMPI_UINT8_T, rank as c_int, HEART, world(), ffi::RSMPI_STATUS_IGNORE);
        }
    }
    there != 0
}

/// A message under way.
#[derive(Debug)]
struct Request(ffi::MPI_Request);

impl Request {
    /// Begins to send `bytes`, at most [`PIECE`].
    ///
    /// # Safety
    /// The bytes must stay where they are until [`is_done`](Self::is_done).
    unsafe fn send(bytes: &[u8], to: usize, tag: c_int) -> Self {
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let (start, count) = (bytes.as_ptr().cast(), bytes.len() as c_int);
        // SAFETY: by the caller, the buffer outlives the request.
        library(|| unsafe { ffi::MPI_Isend(start, count, ffi::RSMPI_UINT8_T, to as c_int, tag, world(), &mut request) });
        Self(request)
    }

    /// Begins to receive into `bytes`, at most [`PIECE`].
    ///
    /// # Safety
    /// As [`send`](Self::send), and nobody may read them before.
    unsafe fn receive(bytes: &mut [u8], from: usize, tag: c_int) -> Self {
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let (start, count) = (bytes.as_mut_ptr().cast(), bytes.len() as c_int);
        // SAFETY: by the caller, the buffer outlives the request.
        library(|| unsafe { ffi::MPI_Irecv(start, count, ffi::RSMPI_UINT8_T, from as c_int, tag, world(), &mut request) });
        Self(request)
    }

    /// Whether the message has arrived or gone.
    fn is_done(&mut self) -> bool {
        let mut done = 0;
        // SAFETY: the request is one of the library's; once it is done it is null, of which the library says that it is done.
        let called = library(|| unsafe { ffi::MPI_Test(&mut self.0, &mut done, ffi::RSMPI_STATUS_IGNORE) });
        called.is_none() || done != 0
    }
}

/// What comes from one rank: first its length, then the content.
struct Incoming {
    from: usize,
    length: Box<[u8; 8]>,
    content: Option<Vec<u8>>,
    requests: Vec<Request>,
}

impl Incoming {
    fn begin(from: usize) -> Self {
        let mut length = Box::new([0; 8]);
        // SAFETY: the box stays where it is until `advance` has seen the request done; the exchange ends no sooner.
        let request = unsafe { Request::receive(&mut *length, from, LENGTH) };
        Self { from, length, content: None, requests: vec![request] }
    }

    /// Goes on as far as it can; whether all is there.
    fn advance(&mut self) -> bool {
        self.requests.retain_mut(|request| !request.is_done());
        if self.requests.is_empty() && self.content.is_none() {
            let mut content = vec![0; u64::from_le_bytes(*self.length) as usize];
            // SAFETY: the content is moved, but its bytes stay on the heap until the requests are done.
            self.requests = content.chunks_mut(PIECE).map(|piece| unsafe { Request::receive(piece, self.from, CONTENT) }).collect();
            self.content = Some(content);
            self.requests.retain_mut(|request| !request.is_done());
        }
        self.content.is_some() && self.requests.is_empty()
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn name(&self, rank: usize) -> String {
        self.names[rank].clone()
    }

    fn exchange(&self, messages: &[&[u8]]) -> Vec<Vec<u8>> {
        self.exchanged(messages, self.wait)
    }

    fn part(&self) {
        self.exchanged(&vec![&[][..]; self.size], Duration::MAX);
    }
}

impl Mpi {
    /// As [`exchange`](Transport::exchange), for as long as nobody has to be waited for longer than `wait`.
    fn exchanged(&self, messages: &[&[u8]], wait: Duration) -> Vec<Vec<u8>> {
        let others: Vec<usize> = (0..self.size).filter(|rank| *rank != self.rank).collect();
        let lengths: Vec<[u8; 8]> = messages.iter().map(|message| (message.len() as u64).to_le_bytes()).collect();
        let mut incoming: Vec<Incoming> = others.iter().map(|rank| Incoming::begin(*rank)).collect();
        let mut outgoing: Vec<Request> = Vec::new();
        for rank in &others {
            // SAFETY: lengths and messages outlive this function, which returns when all requests are done.
            unsafe {
                outgoing.push(Request::send(&lengths[*rank], *rank, LENGTH));
                outgoing.extend(messages[*rank].chunks(PIECE).map(|piece| Request::send(piece, *rank, CONTENT)));
            }
        }
        let began = Instant::now();
        loop {
            outgoing.retain_mut(|request| !request.is_done());
            // All of them go on, whichever is not there yet.
            let missing: Vec<usize> = incoming.iter_mut().filter_map(|incoming| (!incoming.advance()).then_some(incoming.from)).collect();
            if outgoing.is_empty() && missing.is_empty() {
                break;
            }
            if began.elapsed() > wait {
                self.give_up_waiting(if missing.is_empty() { &others } else { &missing });
            }
            if began.elapsed() < EAGER { thread::yield_now() } else { thread::sleep(NAP) }
        }
        let mut received: Vec<Vec<u8>> = incoming.into_iter().map(|incoming| incoming.content.expect("all is there")).collect();
        received.insert(self.rank, messages[self.rank].to_vec());
        received
    }
}
