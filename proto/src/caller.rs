//! Who may use a daemon's local socket: by the user and group of the caller that the kernel vouches for,
//! and the machine's own lists of users and groups.

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Nothing.
    None,
    /// Ask.
    Read,
    /// Ask, and change things.
    Change,
}

/// The group whose members may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group<'a> {
    /// By its name, if the machine has it.
    Named(&'a str),
    /// By its number.
    Numbered(u32),
}

/// Who may do what on a machine.
#[derive(Debug, Clone)]
pub struct Callers {
    /// Users that may change things.
    pub owners: Vec<u32>,
    /// The group whose members may ask, if the machine has it.
    pub group: Option<u32>,
    /// Users that are its members otherwise than by their primary group.
    pub members: Vec<u32>,
}

impl Callers {
    /// From the content of the machine's group and user files (group(5), passwd(5)). Root and the user
    /// `own` may change things. Members are the local users listed there; users that a directory service
    /// adds count if the group is their primary one.
    #[must_use]
    pub fn from_files(own: u32, group: Group<'_>, groups: &str, users: &str) -> Self {
        let number = |row: &[&str]| row.get(2).and_then(|number| number.parse::<u32>().ok());
        let row = rows(groups).find(|row| match group {
            Group::Named(name) => row.first() == Some(&name),
            Group::Numbered(wanted) => number(row) == Some(wanted),
        });
        let names = row.as_ref().and_then(|row| row.get(3)).copied();
        let names: Vec<&str> = names.unwrap_or_default().split(',').collect();
        let members =
            rows(users).filter(|row| row.first().is_some_and(|name| names.contains(name)));
        Self {
            owners: vec![0, own],
            members: members.filter_map(|row| number(&row)).collect(),
            group: match group {
                Group::Named(_) => row.and_then(|row| number(&row)),
                Group::Numbered(wanted) => Some(wanted),
            },
        }
    }

    /// What the caller with this user and primary group may do.
    #[must_use]
    pub fn right(&self, uid: u32, gid: u32) -> Right {
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
mod tests {
    use super::*;

    #[test]
    fn rights_follow_user_and_group() {
        let groups = "root:x:0:\npodmesh:x:980:ann,bob\nusers:x:100:eve";
        let users = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:\neve:x:1002:100::/:";
        for group in [Group::Named("podmesh"), Group::Numbered(980)] {
            let callers = Callers::from_files(990, group, groups, users);
            for (uid, gid, right) in [
                (0, 0, Right::Change),
                (990, 980, Right::Change),
                (1000, 1000, Right::Read),
                (1001, 1001, Right::Read),
                (1002, 100, Right::None),
                (1003, 980, Right::Read),
                (65_534, 65_534, Right::None),
            ] {
                assert_eq!(callers.right(uid, gid), right, "{group:?} {uid}:{gid}");
            }
        }
        let named = Group::Named("podmesh");
        let without = Callers::from_files(0, named, "root:x:0:", "root:x:0:0:");
        assert_eq!(without.right(1000, 1000), Right::None);
    }
}
