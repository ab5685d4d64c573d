//! Which news each member still has to hear.
//!
//! Every fact has one topic, and a topic has one version: the moment of its latest change. What
//! changed twice before a member heard of it is told once.

use std::collections::BTreeMap;
use std::ops::Bound;

use podmesh_proto::id::NodeId;
use podmesh_proto::planet_api::DirectoryCursor;

/// What a piece of news is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// A statement of the root, by its hash.
    Statement([u8; 32]),
    /// The newest edition of the network.
    Network,
    /// The membership of a node.
    Member(NodeId),
    /// Where a node may be reached.
    Endpoints(NodeId),
    /// Whether a node is connected.
    Presence(NodeId),
    /// A node left.
    Left(NodeId),
}

/// All topics with their versions.
#[derive(Debug, Clone)]
pub struct Directory {
    epoch: u64,
    version: u64,
    topics: BTreeMap<Topic, u64>,
    versions: BTreeMap<u64, Topic>,
}

impl Directory {
    /// An empty directory; `epoch` is a random number of this process.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            version: 0,
            topics: BTreeMap::new(),
            versions: BTreeMap::new(),
        }
    }

    /// The present state.
    #[must_use]
    pub fn cursor(&self) -> DirectoryCursor {
        self.at(self.version)
    }

    /// A cursor of this directory.
    #[must_use]
    pub fn at(&self, version: u64) -> DirectoryCursor {
        DirectoryCursor {
            epoch: self.epoch,
            version,
        }
    }

    /// The version up to which the holder of `cursor` knows everything; `None` if it has to start
    /// from nothing.
    #[must_use]
    pub fn version_of(&self, cursor: Option<DirectoryCursor>) -> Option<u64> {
        cursor
            .filter(|cursor| cursor.epoch == self.epoch && cursor.version <= self.version)
            .map(|cursor| cursor.version)
    }

    /// There is news on `topic`. What depends on a membership is told again after it, because a node
    /// can't make use of it before.
    pub fn touch(&mut self, topic: Topic) {
        self.renew(topic);
        if let Topic::Member(node) = topic {
            for following in [Topic::Endpoints(node), Topic::Presence(node)] {
                if self.topics.contains_key(&following) {
                    self.renew(following);
                }
            }
        }
    }

    /// There is nothing to say on `topic` any more.
    pub fn forget(&mut self, topic: Topic) {
        if let Some(version) = self.topics.remove(&topic) {
            self.versions.remove(&version);
        }
    }

    /// Forgets everything about a node but its leaving.
    pub fn forget_node(&mut self, node: NodeId) {
        for topic in [
            Topic::Member(node),
            Topic::Endpoints(node),
            Topic::Presence(node),
        ] {
            self.forget(topic);
        }
    }

    /// Topics that changed after `version`, oldest first.
    pub fn after(&self, version: u64) -> impl Iterator<Item = (u64, Topic)> + '_ {
        self.versions
            .range((Bound::Excluded(version), Bound::Unbounded))
            .map(|(version, topic)| (*version, *topic))
    }

    fn renew(&mut self, topic: Topic) {
        self.version = self.version.saturating_add(1);
        if let Some(former) = self.topics.insert(topic, self.version) {
            self.versions.remove(&former);
        }
        self.versions.insert(self.version, topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_told_once_and_dependants_follow_their_membership() {
        let (a, b) = (NodeId([1; 32]), NodeId([2; 32]));
        let mut directory = Directory::new(7);
        for topic in [
            Topic::Member(a),
            Topic::Endpoints(a),
            Topic::Presence(a),
            Topic::Presence(a),
            Topic::Member(b),
        ] {
            directory.touch(topic);
        }
        let heard = directory.cursor();
        let topics =
            |version| -> Vec<Topic> { directory.after(version).map(|(_, topic)| topic).collect() };
        let all = [
            Topic::Member(a),
            Topic::Endpoints(a),
            Topic::Presence(a),
            Topic::Member(b),
        ];
        assert_eq!(topics(0), all);
        assert_eq!(topics(heard.version), []);
        directory.touch(Topic::Member(a));
        let news: Vec<Topic> = directory
            .after(heard.version)
            .map(|(_, topic)| topic)
            .collect();
        assert_eq!(
            news,
            [Topic::Member(a), Topic::Endpoints(a), Topic::Presence(a)]
        );
        directory.forget_node(b);
        assert_eq!(directory.after(0).count(), 3);
        assert_eq!(directory.version_of(Some(heard)), Some(heard.version));
        let other = DirectoryCursor {
            epoch: 8,
            version: 1,
        };
        assert_eq!(directory.version_of(Some(other)), None);
    }
}
