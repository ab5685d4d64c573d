//! Sleeping until one of a shard's descriptors has something, or somebody wakes it.
#![allow(
    unsafe_code,
    reason = "eventfd and ppoll have no safe form in the standard library"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What one thread sleeps on: a few descriptors and its own [`Waker`].
#[derive(Debug)]
pub struct Waiter {
    /// The waker's descriptor first, then the watched ones.
    descriptors: Vec<libc::pollfd>,
    bell: Arc<Bell>,
}

/// Wakes the thread that waits at a [`Waiter`]. Cheap to clone and to call: only the first of many
/// calls reaches the kernel.
#[derive(Debug, Clone)]
pub struct Waker {
    bell: Arc<Bell>,
}

/// One descriptor that a [`Waiter`] watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source(usize);

#[derive(Debug)]
struct Bell {
    eventfd: File,
    rung: AtomicBool,
}

impl Waiter {
    /// A waiter that watches nothing but its waker.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and belongs to nobody else.
        let eventfd = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let descriptors = vec![readable(&eventfd)];
        Ok(Self {
            descriptors,
            bell: Arc::new(Bell {
                eventfd,
                rung: AtomicBool::new(false),
            }),
        })
    }

    /// A handle for other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker {
            bell: Arc::clone(&self.bell),
        }
    }

    /// Watches a descriptor for something to read. It must stay open as long as the waiter is used;
    /// a closed one shows as failed.
    pub fn watch(&mut self, descriptor: &impl AsFd) -> Source {
        self.descriptors.push(readable(descriptor));
        Source(self.descriptors.len() - 1)
    }

    /// Watches a socket for room to send.
    pub fn watch_for_room(&mut self, socket: &impl AsFd) {
        let events = libc::POLLOUT;
        self.descriptors.push(libc::pollfd {
            events,
            ..readable(socket)
        });
    }

    /// Watches a descriptor for failure alone, whatever there is to read.
    pub fn watch_for_failure(&mut self, descriptor: &impl AsFd) -> Source {
        self.descriptors.push(libc::pollfd {
            events: 0,
            ..readable(descriptor)
        });
        Source(self.descriptors.len() - 1)
    }

    /// Forgets all watched descriptors, for instance to watch those of a new device.
    pub fn clear(&mut self) {
        self.descriptors.truncate(1);
    }

    /// Sleeps until a watched descriptor is readable or has failed, the waker was called, or
    /// `timeout` is over (`None`: for ever). A signal ends the sleep as well.
    ///
    /// A call of the waker before this one ends it at once, so nothing is missed by a thread that
    /// looks at its queues after each wait.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the call.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the descriptors and the timeout outlive the call, the count is theirs.
        let ready = unsafe {
            libc::ppoll(
                self.descriptors.as_mut_ptr(),
                self.descriptors.len() as libc::nfds_t,
                timeout,
                ptr::null(),
            )
        };
        if ready < 0 {
            let error = io::Error::last_os_error();
            for descriptor in &mut self.descriptors {
                descriptor.revents = 0;
            }
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if self.woken() {
            self.bell.silence();
        }
        Ok(())
    }

    /// Whether the waker ended the last wait.
    #[must_use]
    pub fn woken(&self) -> bool {
        self.descriptors
            .first()
            .is_some_and(|bell| bell.revents & libc::POLLIN != 0)
    }

    /// Whether anything ended the last wait.
    #[must_use]
    pub fn has_any(&self) -> bool {
        self.descriptors.iter().any(|one| one.revents != 0)
    }

    /// Whether `source` had something to read at the last wait, or something to say.
    #[must_use]
    pub fn is_ready(&self, source: Source) -> bool {
        self.events(source) != 0
    }

    /// Whether `source` had failed at the last wait. For a TUN queue: its device was deleted.
    #[must_use]
    pub fn has_failed(&self, source: Source) -> bool {
        self.events(source) & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0
    }

    fn events(&self, source: Source) -> libc::c_short {
        self.descriptors
            .get(source.0)
            .map_or(0, |descriptor| descriptor.revents)
    }
}

impl Waker {
    /// Ends the present wait, or the next one. Put work into the shard's queue first.
    pub fn wake(&self) {
        if !self.bell.rung.swap(true, Ordering::AcqRel) {
            // It can fail only when the counter is full, and then the bell is ringing anyway.
            let _ = (&self.bell.eventfd).write(&1_u64.to_ne_bytes());
        }
    }
}

impl Bell {
    fn silence(&self) {
        let mut count = [0; 8];
        let _ = (&self.eventfd).read(&mut count);
        self.rung.swap(false, Ordering::AcqRel);
    }
}

fn readable(descriptor: &impl AsFd) -> libc::pollfd {
    libc::pollfd {
        fd: descriptor.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_call_before_the_wait_is_not_missed_and_many_calls_are_one() {
        let mut waiter = Waiter::new().expect("a waiter");
        let waker = waiter.waker();
        waker.wake();
        waker.wake();
        waiter.wait(None).expect("a wait");
        assert!(waiter.woken());
        waiter.wait(Some(Duration::from_millis(1))).expect("a wait");
        assert!(!waiter.woken());
    }

    #[test]
    fn another_thread_ends_a_long_wait() {
        let mut waiter = Waiter::new().expect("a waiter");
        let waker = waiter.waker();
        let start = Instant::now();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        waiter.wait(Some(Duration::from_secs(10))).expect("a wait");
        assert!(waiter.woken() && start.elapsed() < Duration::from_secs(5));
        other.join().expect("the other thread");
    }

    #[test]
    fn no_call_is_lost_among_thousands() {
        let mut waiter = Waiter::new().expect("a waiter");
        let waker = waiter.waker();
        let (sender, receiver) = std::sync::mpsc::channel();
        let other = thread::spawn(move || {
            for number in 0..20_000_u32 {
                sender.send(number).expect("an open channel");
                waker.wake();
            }
        });
        let mut next = 0;
        while next < 20_000 {
            waiter.wait(Some(Duration::from_secs(10))).expect("a wait");
            assert!(waiter.woken(), "slept with {next} of 20000 seen");
            while let Ok(number) = receiver.try_recv() {
                assert_eq!(number, next);
                next += 1;
            }
        }
        other.join().expect("the other thread");
    }
}
