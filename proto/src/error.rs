//! What can be wrong with bytes or documents from outside.

use crate::id::NodeId;
use crate::time::UnixSeconds;

/// Bytes that don't mean anything to us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// More bytes than the kind of message may have.
    #[error("{kind} of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// What was being decoded.
        kind: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Fewer bytes than the fixed parts need, or a field that has no meaning.
    #[error("malformed {kind}")]
    Malformed {
        /// What was being decoded.
        kind: &'static str,
    },
    /// A version that this program doesn't speak.
    #[error("{kind} has version {version}, this program speaks {supported}")]
    Version {
        /// What was being decoded.
        kind: &'static str,
        /// The version found.
        version: u16,
        /// The version spoken.
        supported: u16,
    },
    /// A text that is not a name.
    #[error(
        "'{text}' is not a name: use 1 to 63 of a-z, 0-9, '-' and '.', starting and ending with a letter or digit"
    )]
    Name {
        /// The text, cut and escaped for printing.
        text: String,
    },
    /// The seal of a datagram or text doesn't hold.
    #[error("{kind} fails its integrity check")]
    Seal {
        /// What was being opened.
        kind: &'static str,
    },
}

/// Why a membership, statement or token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The bytes can't be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A signature doesn't verify.
    #[error("the {document} is not signed by {signer}")]
    Signature {
        /// The document.
        document: &'static str,
        /// Who should have signed.
        signer: &'static str,
    },
    /// A document of another network.
    #[error("the {document} belongs to another network")]
    OtherNetwork {
        /// The document.
        document: &'static str,
    },
    /// Two documents of one membership that don't belong together.
    #[error("the {document} does not match the certificate: {field}")]
    Mismatch {
        /// The document.
        document: &'static str,
        /// The field that differs.
        field: &'static str,
    },
    /// The certificate or claim takes more than the grant gives.
    #[error("the {document} goes beyond the token's grant: {field}")]
    BeyondGrant {
        /// The document.
        document: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A receipt by a key that is no planet of the network.
    #[error("the {document} is signed by no planet of this network")]
    UnknownPlanet {
        /// The document.
        document: &'static str,
    },
    /// Out of its validity period.
    #[error("the {document} expired at {at}")]
    Expired {
        /// The document.
        document: &'static str,
        /// When.
        at: UnixSeconds,
    },
    /// Not valid yet.
    #[error("the {document} is valid only from {at}")]
    NotYet {
        /// The document.
        document: &'static str,
        /// From when.
        at: UnixSeconds,
    },
    /// Revoked by the root.
    #[error("the root revoked node {node}")]
    Revoked {
        /// The node.
        node: NodeId,
    },
    /// A key by which anybody could speak (RFC 7748 §6.1, low-order points).
    #[error("the {field} key is a low-order point")]
    WeakKey {
        /// Which key.
        field: &'static str,
    },
}
