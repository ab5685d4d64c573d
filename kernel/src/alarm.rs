//! Waking a task at a moment of the boot clock, which also counts while the machine is suspended.
//!
//! A runtime's own timers are kept in a wheel, and wake a thread that sleeps for long at each turn of one
//! of its cogs, also when nothing is due then. This one wakes it once.
#![allow(
    unsafe_code,
    reason = "the runtime can't see that a descriptor stays the same"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::{Errno, read};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::process;

/// Rings once at the moment that it was set to last.
#[derive(Debug)]
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
    set: Option<Duration>,
}

impl Alarm {
    /// An alarm that is not set. It belongs to the runtime that it is made in.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        // SAFETY: an `OwnedFd` is one and the same open descriptor as long as it lives.
        let timer = unsafe { AsyncFd::register(timer)? };
        Ok(Self { timer, set: None })
    }

    /// Has it ring so long after the machine was booted, and at no other time; at once if that is past.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn set(&mut self, since_boot: Duration) -> io::Result<()> {
        if self.set == Some(since_boot) {
            return Ok(());
        }
        // By how long it is from now on: a process that was moved or restored has what it takes for the boot clock, and
        // the kernel's timer another one. Zero would mean never.
        let left = since_boot.saturating_sub(process::since_boot());
        let left = left.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.set = Some(since_boot);
        Ok(())
    }

    /// Waits until it rings. Given up halfway, nothing is missed.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub async fn rung(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            let outcome = read(ready.get_inner(), &mut [0_u8; 8]);
            ready.clear_ready();
            match outcome {
                Ok(_) => {
                    self.set = None;
                    return Ok(());
                }
                // It was set anew in the meantime.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::process::since_boot;

    const SOON: Duration = Duration::from_millis(30);
    const LATE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn it_rings_when_it_was_set_to_and_once() {
        let mut alarm = Alarm::new().unwrap();
        let at = since_boot() + SOON;
        alarm.set(at).unwrap();
        timeout(LATE, alarm.rung()).await.unwrap().unwrap();
        assert!(since_boot() >= at);
        assert!(timeout(SOON, alarm.rung()).await.is_err());
        // The same moment again, which is past.
        alarm.set(at).unwrap();
        timeout(LATE, alarm.rung()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_last_setting_counts() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Duration::ZERO).unwrap();
        // By now it has rung, and nobody has heard it.
        tokio::time::sleep(SOON).await;
        alarm.set(since_boot() + LATE).unwrap();
        assert!(timeout(SOON, alarm.rung()).await.is_err());
        alarm.set(since_boot()).unwrap();
        timeout(LATE, alarm.rung()).await.unwrap().unwrap();
    }
}
