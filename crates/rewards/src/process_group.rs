//! The process groups of programs that were started, each with all that it has started itself.

use std::process::Child;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// The groups that are there, for a signal handler, which may take no lock. There are never more programs than rewards of a run.
static GROUPS: [AtomicI32; 32] = [const { AtomicI32::new(0) }; 32];

/// The group of a child that leads it. The child must not have been waited for: until then no other group gets its number.
pub(crate) struct ProcessGroup(Pid);

impl ProcessGroup {
    pub(crate) fn led_by(child: &Child) -> Self {
        let leader = Pid::from_child(child);
        let _ = GROUPS.iter().any(|place| place.compare_exchange(0, leader.as_raw_pid(), Ordering::Relaxed, Ordering::Relaxed).is_ok());
        Self(leader)
    }

    /// Whether the leader has ended. It is not waited for.
    pub(crate) fn leader_has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.0), options), Ok(None))
    }

    /// Ends all that are in it.
    pub(crate) fn end(self) {
        let _ = kill_process_group(self.0, Signal::KILL);
        let own = self.0.as_raw_pid();
        for place in &GROUPS {
            let _ = place.compare_exchange(own, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Ends the programs that rewards have started, and all that these have started. For a process that ends at once; a signal handler may call it.
pub fn end_programs() {
    for place in &GROUPS {
        if let Some(leader) = Pid::from_raw(place.load(Ordering::Relaxed)) {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}
