//! The node's UDP sockets: the main port, bound once per shard, and the spare port.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};

use podmesh_engine::outbound::Outgoing;
use podmesh_engine::path_id::SocketId;
use podmesh_engine::reach::Reach;
use podmesh_kernel::descriptors::Descriptors;
use podmesh_kernel::udp::{
    BATCH_SLOTS, BindError, Blocked, HopLimit, Options, SendBatch, SendCounts, SendRun, UdpSocket,
    steer_by_receiver,
};

use crate::config::Config;

/// Of descriptors that are handed over: those of a shard have its number behind them.
const NAMES: [&str; 4] = ["udp4-", "udp6-", "spare4", "spare6"];
const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Every socket; sending and receiving need no more than a reference.
pub(crate) struct Sockets {
    shards: Vec<Pair>,
    spare: Pair,
    ports: [u16; 2],
}

/// A socket had no room for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop {
    /// Here.
    pub(crate) at: Blocked,
    /// It is this one; whether of IPv4.
    pub(crate) way: (SocketId, bool),
}

/// The sockets of one port, one per address family that the machine has.
#[derive(Default)]
pub(crate) struct Pair {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    /// Binds the main port once per shard and family, so that the kernel keeps a tunnel's datagrams
    /// with one shard, and a spare port of the system's choice.
    ///
    /// # Errors
    /// Another program has the port, or the machine has neither IPv4 nor IPv6.
    pub(crate) fn bind(port: u16, shards: usize, config: &Config) -> Result<Self, BindError> {
        let options = options(config);
        let mut v4 = bind_family(V4, port, shards, &options)?.into_iter();
        let mut v6 = bind_family(V6, port, shards, &options)?.into_iter();
        let pairs: Vec<Pair> = (0..shards)
            .map(|_| Pair {
                v4: v4.next(),
                v6: v6.next(),
            })
            .collect();
        let spare = bind_spare(&options)?;
        let ports = [port, spare.port().unwrap_or(0)];
        Ok(Self {
            shards: pairs,
            spare,
            ports,
        })
    }

    /// How many shards the sockets of another meshd are for.
    pub(crate) fn shards(descriptors: &Descriptors) -> usize {
        let of = |stem: &str| {
            let mut numbered = (0_usize..).map(|number| format!("{stem}{number}"));
            numbered.position(|name| !descriptors.names().any(|has| has == name))
        };
        let [v4, v6] = [of(NAMES[0]), of(NAMES[1])];
        v4.max(v6).unwrap_or_default()
    }

    /// Takes over the sockets of another meshd; none if they aren't those that this one would bind. Any
    /// port will do if none is named.
    pub(crate) fn adopt(
        port: Option<u16>,
        shards: usize,
        config: &Config,
        mut descriptors: Descriptors,
    ) -> Option<Self> {
        let options = options(config);
        let adopt = |descriptor| {
            UdpSocket::adopt(descriptor, &options)
                .inspect_err(|error| tracing::warn!(reason = %error, "sockets are opened anew"))
                .ok()
        };
        let mut row = |stem: &str| -> Option<Vec<UdpSocket>> {
            descriptors.take_row(stem).into_iter().map(adopt).collect()
        };
        let (v4, v6) = (row(NAMES[0])?, row(NAMES[1])?);
        let fits = |row: &[UdpSocket]| row.is_empty() || row.len() == shards;
        if !fits(&v4) || !fits(&v6) || v4.len() + v6.len() == 0 {
            return None;
        }
        let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
        let pairs: Vec<Pair> = (0..shards)
            .map(|_| Pair {
                v4: v4.next(),
                v6: v6.next(),
            })
            .collect();
        let mut single = |name| descriptors.take(name).and_then(adopt);
        let spare = Pair {
            v4: single(NAMES[2]),
            v6: single(NAMES[3]),
        };
        let port = port.or_else(|| pairs.first()?.port())?;
        let ports = [port, spare.port()?];
        let is_ours = pairs.iter().all(|pair| pair.port() == Some(port));
        is_ours.then_some(Self {
            shards: pairs,
            spare,
            ports,
        })
    }

    /// All descriptors, by the names that [`Self::adopt`] looks for.
    pub(crate) fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let [v4, v6, spare4, spare6] = NAMES;
        let shards = (0..)
            .zip(&self.shards)
            .flat_map(|(number, pair): (usize, _)| {
                [
                    (format!("{v4}{number}"), &pair.v4),
                    (format!("{v6}{number}"), &pair.v6),
                ]
            });
        let spare = [
            (spare4.to_owned(), &self.spare.v4),
            (spare6.to_owned(), &self.spare.v6),
        ];
        shards
            .chain(spare)
            .filter_map(|(name, socket)| Some((name, socket.as_ref()?.as_fd())))
            .collect()
    }

    /// UDP ports of the main and the spare sockets.
    pub(crate) fn ports(&self) -> [u16; 2] {
        self.ports
    }

    /// The sockets that a shard receives from, with their names.
    pub(crate) fn of_shard(&self, shard: usize) -> impl Iterator<Item = (SocketId, &UdpSocket)> {
        let main = self
            .shards
            .get(shard)
            .into_iter()
            .map(|pair| (SocketId::MAIN, pair));
        let spare = (shard == 0).then_some((SocketId::SPARE, &self.spare));
        main.chain(spare).flat_map(|(id, pair)| {
            let sockets = [&pair.v4, &pair.v6].into_iter().flatten();
            sockets.map(move |socket| (id, socket))
        })
    }

    /// Whether datagrams may arrive in one piece.
    pub(crate) fn merges(&self) -> bool {
        self.all().any(UdpSocket::merges)
    }

    /// Whether the kernel cuts runs of datagrams.
    pub(crate) fn segments(&self) -> bool {
        self.all().all(UdpSocket::segments)
    }

    fn all(&self) -> impl Iterator<Item = &UdpSocket> {
        let pairs = self.shards.iter().chain([&self.spare]);
        pairs.flat_map(|pair| [&pair.v4, &pair.v6]).flatten()
    }

    /// Sends runs from the sockets of a shard, in order, beginning where a former call found no room;
    /// tells where this one did.
    pub(crate) fn send<'a>(
        &self,
        shard: usize,
        runs: impl Iterator<Item = Outgoing<'a>>,
        from: Blocked,
    ) -> (SendCounts, Option<Stop>) {
        let mut counts = SendCounts::default();
        let skipped = |run| if run == from.run { from.bytes } else { 0 };
        let mut runs = (from.run..).zip(runs.skip(from.run)).peekable();
        while let Some((first, run)) = runs.peek() {
            let (first, way) = (*first, (run.socket, run.to.is_ipv4()));
            let same = std::iter::from_fn(|| {
                let (number, next) =
                    runs.next_if(|(_, run)| (run.socket, run.to.is_ipv4()) == way)?;
                Some(SendRun {
                    to: next.to,
                    bytes: next.bytes.get(skipped(number)..).unwrap_or_default(),
                    segment: next.segment,
                    ecn: next.ecn,
                })
            });
            let Some(socket) = self.sender(shard, way.0, way.1) else {
                counts.unreachable += same.map(|run| run.count()).sum::<usize>();
                continue;
            };
            let sent = socket.send_runs(same);
            counts += sent.counts;
            if let Some(blocked) = sent.blocked {
                let run = first + blocked.run;
                let bytes = skipped(run) + blocked.bytes;
                let at = Blocked { run, bytes };
                return (counts, Some(Stop { at, way }));
            }
        }
        (counts, None)
    }

    /// Sends a datagram in one piece, or not at all: from a socket of the first shard.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(crate) fn send_whole(
        &self,
        (id, to): (SocketId, SocketAddr),
        bytes: &[u8],
    ) -> io::Result<()> {
        match self.sender(0, id, to.is_ipv4()) {
            Some(socket) => socket.send_whole(to, bytes),
            None => Err(ErrorKind::NetworkUnreachable.into()),
        }
    }

    /// The socket of a shard that datagrams leave by.
    pub(crate) fn sender(&self, shard: usize, id: SocketId, is_ipv4: bool) -> Option<&UdpSocket> {
        let pair = if id == SocketId::SPARE {
            &self.spare
        } else {
            self.shards.get(shard)?
        };
        if is_ipv4 {
            pair.v4.as_ref()
        } else {
            pair.v6.as_ref()
        }
    }
}

impl Pair {
    fn port(&self) -> Option<u16> {
        let socket = self.v4.as_ref().or(self.v6.as_ref())?;
        socket.local_addr().ok().map(|address| address.port())
    }
}

/// Datagrams of one thread on their way out, sent in batches.
pub(crate) struct Outbox {
    shard: usize,
    /// Main and spare port, for each IPv4 and IPv6.
    batches: [SendBatch; 4],
    counts: SendCounts,
}

impl Outbox {
    /// For the thread that uses the sockets of `shard`, with room for full batches of datagrams of
    /// `longest` bytes.
    pub(crate) fn new(shard: usize, longest: usize) -> Self {
        Self {
            shard,
            batches: std::array::from_fn(|_| SendBatch::new(BATCH_SLOTS * longest)),
            counts: SendCounts::default(),
        }
    }

    /// Takes a datagram; sends those before it if there is no room.
    pub(crate) fn push(
        &mut self,
        sockets: &Sockets,
        (id, to): (SocketId, SocketAddr),
        reach: Option<Reach>,
        bytes: &[u8],
    ) {
        let number = usize::from(id == SocketId::SPARE) * 2 + usize::from(to.is_ipv6());
        let Some(batch) = self.batches.get_mut(number) else {
            return;
        };
        let limit = reach.map(|reach| HopLimit {
            ttl: reach.ttl(),
            strict: reach.strict,
        });
        for _ in 0..2 {
            let copy = |space: &mut [u8]| {
                space.copy_from_slice(bytes);
                Some(bytes.len())
            };
            if batch.push_with(to, limit, bytes.len(), copy).is_ok() {
                return;
            }
            self.counts += send(sockets, (self.shard, number), batch);
        }
        self.counts.too_long += 1;
    }

    /// Sends everything and says what became of all datagrams since the last time.
    pub(crate) fn flush(&mut self, sockets: &Sockets) -> SendCounts {
        for (number, batch) in self.batches.iter_mut().enumerate() {
            if !batch.is_empty() {
                self.counts += send(sockets, (self.shard, number), batch);
            }
        }
        std::mem::take(&mut self.counts)
    }
}

fn send(sockets: &Sockets, (shard, number): (usize, usize), batch: &mut SendBatch) -> SendCounts {
    let id = if number < 2 {
        SocketId::MAIN
    } else {
        SocketId::SPARE
    };
    if let Some(socket) = sockets.sender(shard, id, number.is_multiple_of(2)) {
        return socket.send_batch(batch);
    }
    let unreachable = batch.len();
    batch.clear();
    SendCounts {
        unreachable,
        ..SendCounts::default()
    }
}

fn options(config: &Config) -> Options {
    Options {
        mark: Some(config.mark.value()),
        segment: config.offloads.udp_gso,
        merge: config.offloads.udp_gro,
        ..Options::default()
    }
}

/// One socket per shard; none at all if the machine doesn't have the address family.
fn bind_family(
    any: IpAddr,
    port: u16,
    shards: usize,
    alone: &Options,
) -> Result<Vec<UdpSocket>, BindError> {
    match UdpSocket::bind_any(any, port, alone) {
        Err(error) if is_absent(&error) && any == V6 => return Ok(Vec::new()),
        // A shared port could be shared with a second meshd by mistake, so it must be free first.
        outcome => drop(outcome?),
    }
    let options = Options {
        reuse_port: true,
        ..*alone
    };
    let sockets = (0..shards)
        .map(|_| UdpSocket::bind_any(any, port, &options))
        .collect::<Result<Vec<_>, _>>()?;
    if let Err(error) = steer_by_receiver(&sockets) {
        tracing::warn!(reason = %error, "the kernel doesn't steer datagrams; tunnels may wander between shards");
    }
    Ok(sockets)
}

fn bind_spare(options: &Options) -> Result<Pair, BindError> {
    let v4 = UdpSocket::bind_any(V4, 0, options)?;
    let port = v4.local_addr().map_or(0, |address| address.port());
    // Both families under one number, so that one candidate describes both; without luck only IPv4.
    let v6 = UdpSocket::bind_any(V6, port, options).ok();
    Ok(Pair { v4: Some(v4), v6 })
}

/// Whether another program has the port.
pub(crate) fn is_taken(error: &BindError) -> bool {
    error.source.kind() == ErrorKind::AddrInUse
}

fn is_absent(error: &BindError) -> bool {
    // Switched off at boot, or by a setting.
    matches!(
        error.source.kind(),
        ErrorKind::AddrNotAvailable | ErrorKind::Unsupported
    ) || error.step == "create"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_handed_over_tells_how_many_shards_it_is_for() {
        let shards = |names: &[&str]| {
            let null = || {
                std::fs::File::open("/dev/null")
                    .expect("a descriptor")
                    .into()
            };
            Sockets::shards(&Descriptors::new(
                names.iter().map(|name| ((*name).to_owned(), null())),
            ))
        };
        assert_eq!(shards(&[]), 0);
        assert_eq!(shards(&["tun-0", "tun-1", "spare4"]), 0);
        assert_eq!(shards(&["udp4-0", "udp4-1", "udp4-2", "spare4"]), 3);
        assert_eq!(shards(&["udp6-0", "udp6-1", "udp4-0"]), 2);
        assert_eq!(shards(&["udp4-0", "udp4-2"]), 1);
    }

    #[test]
    fn a_port_that_another_program_has_is_not_shared_with_it() {
        // Marks need rights that a test may not have.
        let other = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        let port = other.local_addr().expect("an address").port();
        if let Err(error) = Sockets::bind(port, 2, &Config::default()) {
            assert!(is_taken(&error) || error.step == "mark", "{error}");
        } else {
            panic!("port {port} was shared");
        }
    }
}
