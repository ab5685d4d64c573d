//! What a caller may do, by the user and group that the kernel vouches for.

use std::fs;

use podmesh_kernel::process;
use tokio::net::unix::UCred;

const GROUP: &str = "podmesh";

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// Nothing.
    None,
    /// Ask.
    Read,
    /// Ask, and change things.
    Change,
}

/// Who may do what on this machine.
#[derive(Debug)]
pub(super) struct Callers {
    owners: Vec<u32>,
    group: Option<u32>,
    members: Vec<u32>,
}

impl Callers {
    /// From the machine's user and group files. Members are the local users listed there; users
    /// that a directory service adds count if the group is their primary one.
    pub(super) fn of_this_machine() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::from_files(
            process::effective_uid(),
            &read("/etc/group"),
            &read("/etc/passwd"),
        )
    }

    fn from_files(own: u32, groups: &str, users: &str) -> Self {
        let group = rows(groups).find(|row| row.first() == Some(&GROUP));
        let names = group.as_ref().and_then(|row| row.get(3)).copied();
        let names: Vec<&str> = names.unwrap_or_default().split(',').collect();
        let uid = |row: Vec<&str>| {
            let name = row.first()?;
            if names.contains(name) {
                row.get(2)?.parse().ok()
            } else {
                None
            }
        };
        Self {
            owners: vec![0, own],
            group: group.and_then(|row| row.get(2)?.parse().ok()),
            members: rows(users).filter_map(uid).collect(),
        }
    }

    /// The group whose members may read, if the machine has it.
    pub(super) fn group(&self) -> Option<u32> {
        self.group
    }

    /// What this caller may do.
    pub(super) fn right_of(&self, caller: &UCred) -> Right {
        self.right(caller.uid(), caller.gid())
    }

    fn right(&self, uid: u32, gid: u32) -> Right {
        if self.owners.contains(&uid) {
            Right::Change
        } else if self.group == Some(gid) || self.members.contains(&uid) {
            Right::Read
        } else {
            Right::None
        }
    }
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

#[cfg(test)]
impl Callers {
    /// As if the caller of the test were a stranger.
    pub(super) fn nobody_but(own: u32) -> Self {
        let (owners, members) = (vec![own], Vec::new());
        Self {
            owners,
            group: None,
            members,
        }
    }

    /// As if the caller of the test were in the group.
    pub(super) fn readers() -> Self {
        let members = vec![process::effective_uid()];
        Self {
            owners: Vec::new(),
            group: None,
            members,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_follow_user_and_group() {
        let callers = Callers::from_files(
            990,
            "root:x:0:\npodmesh:x:980:ann,bob\nusers:x:100:eve",
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:\neve:x:1002:100::/:",
        );
        for (uid, gid, right) in [
            (0, 0, Right::Change),
            (990, 980, Right::Change),
            (1000, 1000, Right::Read),
            (1001, 1001, Right::Read),
            (1002, 100, Right::None),
            (1003, 980, Right::Read),
            (65_534, 65_534, Right::None),
        ] {
            assert_eq!(callers.right(uid, gid), right, "{uid}:{gid}");
        }
        let without = Callers::from_files(0, "root:x:0:", "root:x:0:0:");
        assert_eq!(without.right(1000, 1000), Right::None);
    }
}
