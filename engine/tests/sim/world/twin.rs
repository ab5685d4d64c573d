//! One identity on two disks: a machine that is copied, and one that is put back to an earlier copy.

use std::collections::VecDeque;

use podmesh_engine::stored::StoredState;

use super::World;
use crate::authority::Keys;
use crate::nat::NatKind;

/// What a disk held at some time.
#[derive(Clone)]
pub struct Image {
    keys: Keys,
    next: Option<Keys>,
    rotated: bool,
    generations: VecDeque<Box<StoredState>>,
}

impl World {
    /// A machine that waits for a copy of another's disk. It is the last of the nodes, and no node of its own.
    pub fn add_spare(&mut self) {
        let site = self.site(NatKind::N0);
        self.node(site, NatKind::N0);
        self.spare = true;
    }

    /// Nodes, without the machine that waits for a copy.
    pub fn count(&self) -> usize {
        self.nodes.len() - usize::from(self.spare)
    }

    /// The node that this machine is taken for.
    pub fn body_of(&self, machine: usize) -> usize {
        if machine < self.count() {
            machine
        } else {
            self.twin_of.unwrap_or(machine)
        }
    }

    /// Machines that are, or were a moment ago, taken for a node.
    pub fn machines_of(&self, node: usize) -> impl Iterator<Item = usize> {
        let (spare, copied) = (self.count(), [self.twin_of, self.twin_before]);
        let is_twin = copied.contains(&Some(node));
        // What it was copied from may have another identity since, and spoke by this one a moment ago.
        let of_spare = copied.into_iter().flatten().filter(move |_| node == spare);
        std::iter::once(node)
            .chain(is_twin.then_some(spare))
            .chain(of_spare)
    }

    /// The copy of a node, while it lives.
    pub fn twin(&self, node: usize) -> Option<usize> {
        let machine = self.count();
        let lives = self.twin_of == Some(node) && self.nodes[machine].engine.is_some();
        lives.then_some(machine)
    }

    /// Whether a machine lives that isn't what it is taken for.
    pub fn has_twin(&self) -> bool {
        self.twin_of.is_some_and(|node| self.twin(node).is_some())
    }

    /// Whether this machine could be copied: to a spare one, and so that both have the same keys for good.
    pub fn can_be_copied(&self, node: usize) -> bool {
        self.spare && !self.has_twin() && self.can_be_imaged(node)
    }

    /// Whether the disk has a member, whose keys are not about to change.
    pub fn can_be_imaged(&self, node: usize) -> bool {
        let host = &self.nodes[node];
        let newest = host.disk.newest();
        host.next.is_none() && newest.is_some_and(|state| state.membership.is_some())
    }

    pub fn image(&self, node: usize) -> Image {
        let host = &self.nodes[node];
        Image {
            keys: host.keys,
            next: host.next,
            rotated: host.rotated,
            generations: host.disk.generations.clone(),
        }
    }

    /// Writes a copy over the disk of a machine that is off.
    pub fn write_image(&mut self, machine: usize, image: Image) {
        let host = &mut self.nodes[machine];
        assert!(host.engine.is_none(), "{machine} is on");
        (host.keys, host.next, host.rotated) = (image.keys, image.next, image.rotated);
        host.disk.generations = image.generations;
    }

    /// The spare machine starts with what is on the disk of another.
    pub fn copy_machine(&mut self, node: usize) {
        let (spare, image) = (self.count(), self.image(node));
        self.write_image(spare, image);
        let (id, thresholds) = (self.nodes[node].id, self.nodes[node].thresholds);
        let host = &mut self.nodes[spare];
        (host.id, host.thresholds) = (id, thresholds);
        self.watch.host(host.host, id);
        self.watch.copied.insert(id);
        self.twin_before = self.twin_of.replace(node);
        self.start(spare);
    }
}
