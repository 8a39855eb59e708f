//! Connections between nodes: TLS 1.3 with certificates of the cluster on both sides.
//!
//! The one place that knows rustls. A node's [`Credentials`] serve both directions and can be
//! replaced while connections are open: those go on, every new handshake uses the new ones.
//! [`connect`] reaches managers only, whatever answers at the address; [`connect_with_token`] is for
//! a node that has no certificate yet. [`accept`] lets in members and, for a short time, strangers,
//! and says of each call who makes it ([`Peer`]) and whether its certificate still holds; what a peer
//! may do is decided by the services.
//!
//! There is no session resumption: each connection presents its certificate anew. Nothing here
//! keeps a certificate on disk, asks for a new one, or knows who was removed from the cluster.

mod accept;
mod credentials;
mod dial;
mod error;
mod room;
mod stream;
mod verify;

pub use accept::{Accepting, Incoming, Peer, Stale, accept};
pub use credentials::{Credentials, CredentialsError};
pub use dial::{Dial, HttpsError, connect, connect_with_token, https, lazy};
pub use error::{DialError, Refusal, dial_error};
pub use stream::Stream;
