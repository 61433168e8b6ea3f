//! Connection settings as libpq has them: a URI or `key=value` pairs, then the service file, then the environment, then
//! defaults.

mod resolve;

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use walgate_sink::Secret;

use self::resolve::Surroundings;
use super::tls::TlsSettings;

/// How to reach PostgreSQL, and as whom. Neither `Debug` nor `Display` shows a password.
#[derive(Clone, Debug)]
pub struct ConnectSettings {
    /// Where to try, in this order.
    pub endpoints: Vec<Endpoint>,
    /// The role.
    pub user: String,
    /// The database.
    pub dbname: String,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// Command-line options for the server's session, such as `-c wal_sender_timeout=5s`.
    pub options: Option<String>,
    /// Time to reach one address and log in there; `None` waits for ever.
    pub connect_timeout: Option<Duration>,
    /// TCP keepalives.
    pub keepalives: Keepalives,
    /// `TCP_USER_TIMEOUT`, where it is set.
    pub tcp_user_timeout: Option<Duration>,
    /// `sslmode` and its files.
    pub tls: TlsSettings,
    /// Whether SCRAM is bound to the TLS connection.
    pub channel_binding: ChannelBinding,
    /// Which kind of server will do.
    pub session_attrs: SessionAttrs,
    /// From the connection string, `PGPASSWORD` or [`ConnectSettings::set_password`]; it goes before a password file.
    password: Option<Secret>,
    /// Why a password file was not used: said where a password turns out to be missing.
    password_note: Option<String>,
}

/// One server to try.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name or socket folder.
    pub host: Host,
    /// The address to use instead of looking the name up (`hostaddr`).
    pub address: Option<IpAddr>,
    /// The port; for a socket, the number in its file name.
    pub port: u16,
    /// The password that the password file has for it.
    password: Option<Secret>,
}

/// A name to look up, or the folder of a Unix-domain socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A host name or address.
    Tcp(String),
    /// The folder in which `.s.PGSQL.<port>` stands.
    Unix(PathBuf),
}

/// TCP keepalives, as libpq's `keepalives*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalives {
    /// Whether they are sent at all.
    pub enabled: bool,
    /// Quiet time before the first; the system's where it is `None`.
    pub idle: Option<Duration>,
    /// Time between two; the system's where it is `None`.
    pub interval: Option<Duration>,
    /// How many may stay unanswered; the system's where it is `None`.
    pub count: Option<u32>,
}

/// `sslmode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only where the server's rules refuse a connection without.
    Allow,
    /// TLS where the server offers it and it works, else none. libpq's default.
    #[default]
    Prefer,
    /// TLS, without looking at the certificate unless there is a root certificate.
    Require,
    /// TLS, and the certificate's chain is verified.
    VerifyCa,
    /// TLS, and both chain and host name are verified.
    VerifyFull,
}

/// One way of opening a connection, of those that an `sslmode` allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// No TLS, and none asked for.
    Plain,
    /// TLS if the server answers that it has it, else none.
    TlsIfOffered,
    /// TLS or nothing.
    TlsRequired,
}

impl SslMode {
    /// The ways to try at one address, in order. The second is taken only where the first failed for a reason that has
    /// to do with TLS, see [`super::ConnectError::warrants_other_transport`].
    #[must_use]
    pub fn transports(self, host: &Host) -> &'static [Transport] {
        match (host, self) {
            // As in libpq: sslmode says nothing about Unix-domain sockets.
            (Host::Unix(_), _) | (_, SslMode::Disable) => &[Transport::Plain],
            (_, SslMode::Allow) => &[Transport::Plain, Transport::TlsRequired],
            (_, SslMode::Prefer) => &[Transport::TlsIfOffered, Transport::Plain],
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Transport::TlsRequired],
        }
    }

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

/// `channel_binding`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Not used.
    Disable,
    /// Used where the server offers it.
    #[default]
    Prefer,
    /// A login without it is refused.
    Require,
}

/// `target_session_attrs`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionAttrs {
    /// Every server will do.
    #[default]
    Any,
    /// Only one that takes writes by default.
    ReadWrite,
    /// Only one that does not.
    ReadOnly,
}

/// The settings are wrong. No text of it shows a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The connection string cannot be read.
    #[error("connection string: at character {at}: {problem}")]
    Syntax {
        /// Where, from 1.
        at: usize,
        /// What is wrong there, and what to do.
        problem: &'static str,
    },
    /// A parameter that libpq does not know either.
    #[error("connection string: unknown parameter `{name}`{}", .nearest.map(|near| format!(": did you mean `{near}`?")).unwrap_or_default())]
    UnknownParameter {
        /// As it was written.
        name: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// A parameter of libpq that walgate does not have.
    #[error("connection string: parameter `{name}` is libpq's but not supported here: leave it out")]
    UnsupportedParameter {
        /// As it was written.
        name: String,
    },
    /// A value that the parameter cannot have.
    #[error("connection setting `{name}`: {expected}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What is expected.
        expected: String,
    },
    /// The service is in none of the service files.
    #[error("connection service `{name}` is not defined: looked in {files}")]
    UnknownService {
        /// The service.
        name: String,
        /// Where it was looked for.
        files: String,
    },
    /// A file that the settings name cannot be used.
    #[error("{what} `{path}` cannot be used: {reason}")]
    File {
        /// Which kind of file.
        what: &'static str,
        /// Its path.
        path: String,
        /// Why not.
        reason: String,
    },
}

impl ConnectSettings {
    /// Settings from a connection string, completed from the service file, the environment (`PGHOST` and its kin, by
    /// `env`) and defaults. An empty variable counts as not set.
    ///
    /// # Errors
    /// Where the string is malformed, or a setting is unknown or has a value that it cannot have.
    pub fn parse(text: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        resolve::resolve(text, env, &Surroundings::here())
    }

    /// Sets the password, whatever the connection string or a password file says.
    pub fn set_password(&mut self, password: Secret) {
        self.password = Some(password);
    }

    /// The password for one of the endpoints.
    #[must_use]
    pub fn password_for<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a Secret> {
        self.password.as_ref().or(endpoint.password.as_ref())
    }

    /// Why a password file was not used, where there was one.
    #[must_use]
    pub fn password_note(&self) -> Option<&str> {
        self.password_note.as_deref()
    }

    /// The settings of the SQL connection to one endpoint, for `tokio_postgres`. TLS is decided by the caller:
    /// [`super::connect_sql`] does all of it.
    #[must_use]
    pub fn to_tokio_postgres(&self, endpoint: &Endpoint, transport: Transport) -> tokio_postgres::Config {
        use tokio_postgres::config;
        let mut target = config::Config::new();
        match &endpoint.host {
            Host::Tcp(name) => target.host(name),
            Host::Unix(folder) => target.host_path(folder),
        };
        if let Some(address) = endpoint.address {
            target.hostaddr(address);
        }
        target.port(endpoint.port).user(&self.user).dbname(&self.dbname).application_name(&self.application_name);
        if let Some(password) = self.password_for(endpoint) {
            target.password(password.expose());
        }
        if let Some(options) = &self.options {
            target.options(options);
        }
        if let Some(timeout) = self.connect_timeout {
            target.connect_timeout(timeout);
        }
        if let Some(timeout) = self.tcp_user_timeout {
            target.tcp_user_timeout(timeout);
        }
        target.keepalives(self.keepalives.enabled);
        if let Some(idle) = self.keepalives.idle {
            target.keepalives_idle(idle);
        }
        if let Some(interval) = self.keepalives.interval {
            target.keepalives_interval(interval);
        }
        if let Some(count) = self.keepalives.count {
            target.keepalives_retries(count);
        }
        target.ssl_mode(match transport {
            Transport::Plain => config::SslMode::Disable,
            Transport::TlsIfOffered => config::SslMode::Prefer,
            Transport::TlsRequired => config::SslMode::Require,
        });
        target.channel_binding(match self.channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
        target.target_session_attrs(match self.session_attrs {
            SessionAttrs::Any => config::TargetSessionAttrs::Any,
            SessionAttrs::ReadWrite => config::TargetSessionAttrs::ReadWrite,
            SessionAttrs::ReadOnly => config::TargetSessionAttrs::ReadOnly,
        });
        target
    }
}

impl fmt::Display for ConnectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{endpoint}")?;
        }
        write!(f, "/{}", self.dbname)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp(name) => write!(f, "{name}:{}", self.port),
            Host::Unix(_) => write!(f, "{}", self.socket_path().display()),
        }
    }
}

impl Endpoint {
    /// The socket's file, for a Unix-domain socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        let name = format!(".s.PGSQL.{}", self.port);
        match &self.host {
            Host::Unix(folder) => folder.join(name),
            Host::Tcp(_) => PathBuf::from(name),
        }
    }
}
