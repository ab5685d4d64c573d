//! What was lost between the shards and the kernel.

use std::sync::atomic::{AtomicU64, Ordering};

use podmesh_kernel::tun::WriteCounts;
use podmesh_kernel::udp::SendCounts;
use podmesh_proto::local_api::DropView;

macro_rules! counters {
    ($($name:ident = $words:literal,)*) => {
        /// Losses by reason, of all shards together.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($name: AtomicU64,)*
        }

        impl Counters {
            /// Those that have happened.
            pub(crate) fn views(&self) -> Vec<DropView> {
                let all = [$((&self.$name, $words),)*];
                all.into_iter()
                    .map(|(count, reason)| DropView {
                        reason: reason.to_owned(),
                        count: count.load(Ordering::Relaxed),
                    })
                    .filter(|drop| drop.count > 0)
                    .collect()
            }
        }
    };
}

counters! {
    unreachable = "no route to the peer's endpoint",
    refused = "firewall of this node refused the datagram",
    no_buffers = "network device was busy",
    would_block = "socket's send buffer was full",
    too_long = "datagram longer than the device carries",
    other = "datagram not sent for another reason",
    device_down = "mesh interface is down",
    invalid = "kernel refused the packet",
    no_memory = "kernel had no memory for the packet",
    oversized_packets = "packet longer than the mesh interface's MTU",
    oversized_datagrams = "datagram longer than any of a peer",
}

impl Counters {
    /// Adds what became of datagrams.
    pub(crate) fn add_sent(&self, sent: &SendCounts) {
        for (counter, number) in [
            (&self.unreachable, sent.unreachable),
            (&self.refused, sent.refused),
            (&self.no_buffers, sent.no_buffers),
            (&self.would_block, sent.would_block),
            (&self.too_long, sent.too_long),
            (&self.other, sent.other),
        ] {
            add(counter, number as u64);
        }
    }

    /// Adds what became of packets.
    pub(crate) fn add_written(&self, written: &WriteCounts) {
        for (counter, number) in [
            (&self.device_down, written.device_down),
            (&self.invalid, written.invalid),
            (&self.no_memory, written.no_memory),
        ] {
            add(counter, number as u64);
        }
    }

    /// Adds what was too long to be read.
    pub(super) fn add_oversized(&self, packets: u64, datagrams: u64) {
        add(&self.oversized_packets, packets);
        add(&self.oversized_datagrams, datagrams);
    }
}

fn add(counter: &AtomicU64, number: u64) {
    if number > 0 {
        counter.fetch_add(number, Ordering::Relaxed);
    }
}
