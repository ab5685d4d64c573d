//! What meshd says about this node, read with suspicion: the plugin is root, meshd is not.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use ipnet::IpNet;
use podmesh_kernel::sysctl::{self, IpFamily};
use podmesh_proto::node_file::{MAX_NODE_FILE_BYTES, NODE_FILE_NAME, NodeFile};

use crate::{
    reply::{Code, Failure},
    request::Config,
    warn,
};

/// Reads `node.json` from meshd's runtime folder, or its last copy from the state folder.
pub(crate) fn read(config: &Config) -> Result<NodeFile, Failure> {
    let current = read_from(&config.runtime_dir);
    let found = match current {
        Ok(Some(file)) => Some(file),
        Ok(None) => read_from(&config.state_dir)?,
        Err(failure) => {
            let copy = read_from(&config.state_dir).ok().flatten();
            let Some(copy) = copy else {
                return Err(failure);
            };
            warn(&format!(
                "used the copy in {}, because {} is unusable",
                config.state_dir.display(),
                config.runtime_dir.join(NODE_FILE_NAME).display()
            ));
            Some(copy)
        }
    };
    found.ok_or_else(|| {
        Failure::new(
            Code::TryAgainLater,
            format!(
                "meshd has not written {} yet: is it running and has the node joined?",
                config.runtime_dir.join(NODE_FILE_NAME).display()
            ),
        )
    })
}

/// Those ranges whose address family the kernel of this machine has: in the other one nothing can
/// be routed, and nothing can leave.
pub(crate) fn routable(ranges: &[IpNet]) -> Vec<IpNet> {
    ranges_of(ranges, sysctl::has_family)
}

fn ranges_of(ranges: &[IpNet], has_family: impl Fn(IpFamily) -> bool) -> Vec<IpNet> {
    let exists = |range: &&IpNet| {
        has_family(match range {
            IpNet::V4(_) => IpFamily::V4,
            IpNet::V6(_) => IpFamily::V6,
        })
    };
    ranges.iter().filter(exists).copied().collect()
}

fn read_from(folder: &Path) -> Result<Option<NodeFile>, Failure> {
    let path = folder.join(NODE_FILE_NAME);
    let wrong = |problem: String| {
        Failure::new(
            Code::NodeFile,
            format!("{} cannot be used: {problem}", path.display()),
        )
    };
    let bytes = match read_plain_file(&path) {
        Ok(bytes) => bytes,
        Err(cause)
            if matches!(
                cause.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(cause) => return Err(wrong(cause.to_string())),
    };
    NodeFile::parse(&bytes, |bytes| serde_json::from_slice(bytes))
        .map(Some)
        .map_err(|error| wrong(error.to_string()))
}

/// Reads a file that is itself at the path, neither a link nor anything else than a file.
fn read_plain_file(path: &Path) -> io::Result<Vec<u8>> {
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        let seen = fs::symlink_metadata(path)?;
        if !seen.is_file() {
            return Err(io::Error::other("it is not a plain file"));
        }
        let file = File::open(path)?;
        let opened = file.metadata()?;
        // Different after a rename by meshd in between, which another look gets right.
        if (opened.dev(), opened.ino()) == (seen.dev(), seen.ino()) {
            return read_bounded(file);
        }
    }
    Err(io::Error::other(
        "it is replaced faster than it can be read",
    ))
}

fn read_bounded(file: File) -> io::Result<Vec<u8>> {
    if file.metadata()?.mode() & 0o002 != 0 {
        return Err(io::Error::other("everybody may write it"));
    }
    let limit = u64::try_from(MAX_NODE_FILE_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ipv6_is_not_asked_for_it() {
        let ranges = ["10.42.0.0/16", "fd00:1:2::/48"].map(|range| range.parse().unwrap());
        assert_eq!(ranges_of(&ranges, |_| true), ranges);
        let without = ranges_of(&ranges, |family| family == IpFamily::V4);
        assert_eq!(without, ranges[..1]);
    }
}
