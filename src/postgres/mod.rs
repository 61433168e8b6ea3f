//! What both connections to PostgreSQL share: libpq's connection settings, TLS by `sslmode`, the link itself, and the
//! errors of connecting. The SQL connection is opened here; the replication connection, in `source`, on a [`Link`].

mod channel_binding;
mod cleartext;
mod conninfo;
mod error;
mod link;
mod parameters;
mod passfile;
mod service;
mod socket;
mod sql;
mod tls;

pub use conninfo::{
    ChannelBinding, ConnectSettings, Endpoint, Host, Keepalives, SessionAttrs, SettingsError, SslMode, Transport,
};
pub use error::{ConnectError, ServerError};
pub(crate) use link::{Deadline, open};
pub use link::{Link, LinkReader};
pub(crate) use socket::addresses;
pub use sql::{SqlConnection, connect_sql};
pub use tls::{RootCertificates, TlsError, TlsSettings, client_config};
