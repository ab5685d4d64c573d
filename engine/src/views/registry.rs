//! Whom this node knows in its network, for whoever holds the root key.

use std::collections::BTreeMap;

use podmesh_proto::error::DecodeError;
use podmesh_proto::id::TokenId;
use podmesh_proto::local_api::{RegisteredExternal, RegisteredNode, RegistryView, TokenUse};

use crate::engine::Engine;

impl Engine {
    /// Whom and what this node knows; absent before the join. Members in quarantine are in it: they are
    /// whom the root has to decide about.
    ///
    /// # Errors
    /// The network's document can't be encoded.
    pub fn registry(&self) -> Result<Option<RegistryView>, DecodeError> {
        let Some(members) = &self.members else {
            return Ok(None);
        };
        let known = members.all().map(|known| known.member.as_ref());
        let quarantined = members.quarantined().map(|(member, _)| member);
        let (mut nodes, mut tokens) = (Vec::new(), BTreeMap::<TokenId, u32>::new());
        for member in known.chain(quarantined) {
            let used = tokens.entry(member.admitted_by.0).or_default();
            // Uses are numbered; nodes that have gone have spent theirs as well.
            *used = (*used).max(member.admitted_by.1);
            nodes.push(RegisteredNode {
                id: member.node,
                name: member.name.clone(),
                wireguard: member.wireguard,
                prefixes: member.prefixes(),
            });
        }
        let externals = members.named_externals().map(|peer| RegisteredExternal {
            name: peer.name.clone(),
            wireguard: peer.wireguard,
            prefixes: peer.prefixes.clone(),
            endpoint: peer.endpoint,
            issued: peer.issued,
        });
        let tokens = tokens.into_iter();
        Ok(Some(RegistryView {
            statement: members.network_statement().to_base64()?,
            nodes,
            externals: externals.collect(),
            tokens: tokens
                .map(|(token, used)| TokenUse { token, used })
                .collect(),
            counts: false,
            unknown_until: None,
        }))
    }
}
