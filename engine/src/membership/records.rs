//! Whose word an endpoint record is, by what is known of its node.

use podmesh_proto::candidate::EndpointRecord;
use podmesh_proto::error::CertificateError;
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;

use super::Members;
use super::holdings::MemberId;
use super::lies::{Lie, Source};

impl Members {
    /// The endpoint record, if its node's newest identity signed it.
    ///
    /// # Errors
    /// It can't be read, isn't the node's word, or is of another network.
    pub fn verify_record(
        &self,
        signed: &Signed<EndpointRecord>,
    ) -> Result<EndpointRecord, CertificateError> {
        let identity = self.identity_of(&signed.unverified()?.node);
        EndpointRecord::verify(signed, self.network.id, &identity)
    }

    /// The endpoint record, if an identity that its node has replaced signed it: who hasn't heard of
    /// that passes it on in good faith, and who stole the former key makes new ones.
    #[must_use]
    pub fn former_record(&self, signed: &Signed<EndpointRecord>) -> Option<EndpointRecord> {
        let known = self.known.get(&signed.unverified().ok()?.node)?;
        let mut former = known.member.identities.iter().rev().skip(1);
        former.find_map(|key| EndpointRecord::verify(signed, self.network.id, key).ok())
    }

    /// Notes that `source` passed on a record which doesn't hold by what is known of its node. Who has
    /// changed its identity signs records that go ahead of the news of it.
    pub fn doubt_record(
        &mut self,
        source: Source,
        signed: &Signed<EndpointRecord>,
        error: &CertificateError,
        now: UnixSeconds,
    ) {
        let sentence = format!("sent an endpoint record that doesn't hold: {error}");
        match signed.unverified() {
            Ok(claimed) => {
                let name = self.name_of(MemberId::Node(claimed.node));
                let told = (
                    format!("endpoints of {}", claimed.node),
                    format!("about {name}: {sentence}"),
                );
                self.lies.doubt(source, told, signed, now);
            }
            Err(_) => {
                let told = ("endpoints".to_owned(), sentence);
                self.lies.note(Lie::Forged, source, told, now);
            }
        }
    }

    /// Records that were doubted and, by what is known meanwhile, are their nodes' own word; none of them
    /// counts against anybody any more.
    pub fn take_explained(&mut self) -> Vec<(Source, Signed<EndpointRecord>)> {
        let mut lies = std::mem::take(&mut self.lies);
        let explained = lies.explain(|signed| {
            self.verify_record(signed).is_ok() || self.former_record(signed).is_some()
        });
        self.lies = lies;
        explained
    }
}
