//! Which Linux this is.

use std::fs;

/// Major, minor and patch level.
type Release = (u32, u32, u32);

/// Whether this kernel has what came with these releases: that of its own line, or of an earlier one if
/// its line is newer than all.
pub(crate) fn at_least(releases: &[Release]) -> bool {
    let name = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    parse(&name).is_some_and(|own| is_covered(own, releases))
}

fn is_covered(own: Release, releases: &[Release]) -> bool {
    let same_line = |release: &&Release| (release.0, release.1) == (own.0, own.1);
    match releases.iter().find(same_line) {
        Some(release) => own >= *release,
        None => releases.iter().all(|release| own > *release),
    }
}

fn parse(name: &str) -> Option<Release> {
    let end = name.find(|c: char| !c.is_ascii_digit() && c != '.');
    let mut numbers = name.get(..end.unwrap_or(name.len()))?.split('.');
    let mut next = || numbers.next().map_or(Some(0), |number| number.parse().ok());
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fix_counts_in_its_own_line_and_in_all_newer_ones() {
        let fixed = [(6, 6, 26), (6, 8, 5)];
        for (name, wanted) in [
            ("6.18.3-generic", true),
            ("6.6.26", true),
            ("6.6.25-1-pve", false),
            ("6.7.12", false),
            ("6.8.4", false),
            ("6.8.5+deb13", true),
            ("6.9-rc1", true),
            ("5.15.200", false),
        ] {
            let own = parse(name).expect(name);
            assert_eq!(is_covered(own, &fixed), wanted, "{name}");
        }
        assert_eq!(parse("linux"), None);
    }
}
