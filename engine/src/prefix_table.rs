//! Longest-prefix match over a set that never changes.
//!
//! Prefixes nest or are disjoint, so a set of them cuts the address space into stretches with one
//! most specific prefix each. The stretches' first addresses stand in one sorted array, and a look-up
//! is one binary search in it: no pointers to follow, 17 steps at 100,000 prefixes, and memory that
//! a cache likes. A trie would make changes cheap, but a forwarding table is built anew for each
//! generation anyway.

use std::net::IpAddr;

use ipnet::IpNet;

/// Which value belongs to an address.
#[derive(Debug, Clone)]
pub struct PrefixTable<V> {
    v4: Stretches<u32, V>,
    v6: Stretches<u128, V>,
}

impl<V: Copy> PrefixTable<V> {
    /// The table of these prefixes. Of two equal ones the first counts.
    #[must_use]
    pub fn new(prefixes: impl IntoIterator<Item = (IpNet, V)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, value) in prefixes {
            match prefix {
                IpNet::V4(net) => v4.push(Span {
                    first: net.network().to_bits(),
                    last: net.broadcast().to_bits(),
                    value,
                }),
                IpNet::V6(net) => v6.push(Span {
                    first: net.network().to_bits(),
                    last: net.broadcast().to_bits(),
                    value,
                }),
            }
        }
        Self {
            v4: Stretches::new(v4, |last| last.checked_add(1)),
            v6: Stretches::new(v6, |last| last.checked_add(1)),
        }
    }

    /// The value of the longest prefix that holds `address`. An IPv4-mapped IPv6 address is an IPv6
    /// address here: fold it before, or refuse it.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<V> {
        match address {
            IpAddr::V4(ip) => self.v4.lookup(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.lookup(ip.to_bits()),
        }
    }
}

#[derive(Debug, Clone)]
struct Span<A, V> {
    first: A,
    last: A,
    value: V,
}

/// Address space cut into stretches: `values[i]` holds from `firsts[i]` to before `firsts[i + 1]`.
#[derive(Debug, Clone)]
struct Stretches<A, V> {
    firsts: Vec<A>,
    values: Vec<Option<V>>,
}

impl<A: Copy + Ord, V: Copy> Stretches<A, V> {
    fn new(mut spans: Vec<Span<A, V>>, after: impl Fn(A) -> Option<A>) -> Self {
        // Wider before narrower; the sort is stable, so the first of two equal ones stays first.
        spans.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)));
        spans.dedup_by(|later, first| later.first == first.first && later.last == first.last);
        let mut stretches = Self {
            firsts: Vec::with_capacity(spans.len() * 2),
            values: Vec::with_capacity(spans.len() * 2),
        };
        let mut open: Vec<Span<A, V>> = Vec::new();
        for span in spans {
            stretches.close_until(&mut open, Some(span.first), &after);
            stretches.begin(span.first, Some(span.value));
            open.push(span);
        }
        stretches.close_until(&mut open, None, &after);
        stretches
    }

    /// Ends the open spans that end before `limit`; what surrounds them goes on after them.
    fn close_until(
        &mut self,
        open: &mut Vec<Span<A, V>>,
        limit: Option<A>,
        after: &impl Fn(A) -> Option<A>,
    ) {
        while open
            .last()
            .is_some_and(|span| limit.is_none_or(|limit| span.last < limit))
        {
            let ended = open.pop();
            let outer = open.last().map(|span| span.value);
            if let Some(next) = ended.and_then(|span| after(span.last)) {
                self.begin(next, outer);
            }
        }
    }

    fn begin(&mut self, first: A, value: Option<V>) {
        if self.firsts.last() == Some(&first) {
            self.firsts.pop();
            self.values.pop();
        }
        self.firsts.push(first);
        self.values.push(value);
    }

    fn lookup(&self, address: A) -> Option<V> {
        let after = self.firsts.partition_point(|first| *first <= address);
        self.values.get(after.checked_sub(1)?).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn agrees_with_a_search_through_all_prefixes() {
        let seed = 0x5eed_u64;
        println!("seed {seed:#x}");
        let mut state = seed;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(state >> 32).unwrap()
        };
        for _ in 0..300 {
            // Few bits, so that prefixes nest and touch, at both ends of the space too.
            let mut prefixes: Vec<(IpNet, u32)> = Vec::new();
            for value in 0..random() % 40 {
                let bits = [0, 0xffff_ff00, 0x0a00_0000][random() as usize % 3];
                let address = Ipv4Addr::from_bits(bits | random() & 0xff);
                let length = 22 + u8::try_from(random() % 11).unwrap();
                prefixes.push((IpNet::new(address.into(), length).unwrap().trunc(), value));
            }
            prefixes.sort();
            prefixes.dedup_by_key(|entry| entry.0);
            let table = PrefixTable::new(prefixes.iter().copied());
            for _ in 0..300 {
                let bits = [0, 0xffff_ff00, 0x0a00_0000][random() as usize % 3];
                let address = IpAddr::V4(Ipv4Addr::from_bits(bits | random() & 0x3ff));
                let expected = prefixes
                    .iter()
                    .filter(|(net, _)| net.contains(&address))
                    .max_by_key(|(net, _)| net.prefix_len())
                    .map(|(_, value)| *value);
                assert_eq!(table.lookup(address), expected, "{address} in {prefixes:?}");
            }
        }
    }

    #[test]
    fn families_and_the_ends_of_the_space_are_kept_apart() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let table = PrefixTable::new([
            (net("::/0"), 6),
            (net("255.0.0.0/8"), 4),
            (net("ffff::/16"), 7),
        ]);
        assert_eq!(table.lookup(Ipv4Addr::new(10, 0, 0, 1).into()), None);
        assert_eq!(table.lookup(Ipv4Addr::BROADCAST.into()), Some(4));
        assert_eq!(table.lookup(Ipv6Addr::LOCALHOST.into()), Some(6));
        assert_eq!(table.lookup(Ipv6Addr::from_bits(u128::MAX).into()), Some(7));
        assert_eq!(
            PrefixTable::<u8>::new([]).lookup(Ipv6Addr::LOCALHOST.into()),
            None
        );
    }
}
