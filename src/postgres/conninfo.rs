//! Connection settings as libpq has them: a URI or `key=value` pairs, then the service file, then the environment, then
//! defaults.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use walgate_sink::Secret;

use super::{
    parameters,
    passfile::{self, Lookup, Wanted},
    service,
    tls::{RootCertificates, TlsSettings},
};

/// Where Debian's, and most packagers', PostgreSQL has its socket.
const SOCKET_FOLDER: &str = "/var/run/postgresql";
const DEFAULT_PORT: u16 = 5432;
/// libpq has none. A gateway that waits for ever on a dead address would never try the next one.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_APPLICATION_NAME: &str = "walgate";
const MAX_HOSTS: usize = 64;

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

/// What the machine says, apart from the environment's variables.
struct Surroundings {
    user: Option<String>,
    socket_folder: bool,
}

impl ConnectSettings {
    /// Settings from a connection string, completed from the service file, the environment (`PGHOST` and its kin, by
    /// `env`) and defaults. An empty variable counts as not set.
    ///
    /// # Errors
    /// Where the string is malformed, or a setting is unknown or has a value that it cannot have.
    pub fn parse(text: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let surroundings =
            Surroundings { user: whoami::username().ok(), socket_folder: Path::new(SOCKET_FOLDER).is_dir() };
        resolve(text, env, &surroundings)
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

/// Environment variable by parameter.
const ENVIRONMENT: [(&str, &str); 15] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("application_name", "PGAPPNAME"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
];

fn resolve(
    text: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
    surroundings: &Surroundings,
) -> Result<ConnectSettings, SettingsError> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let mut values: HashMap<String, String> = parameters::split(text.unwrap_or_default())?.into_iter().collect();
    if let Some(name) = values.remove("service").or_else(|| env("PGSERVICE")) {
        for (key, value) in service::look_up(&name, &env)? {
            values.entry(key).or_insert(value);
        }
    }
    for (key, variable) in ENVIRONMENT.into_iter().chain([("options", "PGOPTIONS")]) {
        if let Some(value) = env(variable) {
            values.entry(key.to_owned()).or_insert(value);
        }
    }
    let mut take = |name: &str| values.remove(name).filter(|value| !value.is_empty());

    refuse_others("client_encoding", take("client_encoding"), &["UTF8", "utf8", "UTF-8", "auto"])?;
    refuse_others("gssencmode", take("gssencmode"), &["disable", "prefer"])?;
    refuse_others("sslnegotiation", take("sslnegotiation"), &["postgres"])?;

    let user = take("user").or_else(|| surroundings.user.clone()).ok_or_else(|| SettingsError::Value {
        name: "user",
        expected: "no role is named and the operating system's user has no name: set it, or PGUSER".into(),
    })?;
    let dbname = take("dbname").unwrap_or_else(|| user.clone());
    let home = env("HOME").map(PathBuf::from);
    let password = take("password").map(Secret::new);
    let mut endpoints = endpoints(take("host"), take("hostaddr"), take("port"), surroundings)?;
    let passfile = take("passfile").map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(".pgpass")));
    let mut password_note = None;
    if let (None, Some(passfile)) = (&password, passfile) {
        password_note = read_passfile(&passfile, &mut endpoints, &dbname, &user);
    }
    let fallback = take("fallback_application_name");
    let application_name = take("application_name").or(fallback).unwrap_or_else(|| DEFAULT_APPLICATION_NAME.to_owned());
    for (name, value) in [("user", &user), ("dbname", &dbname), ("application_name", &application_name)] {
        if value.contains('\0') {
            return Err(SettingsError::Value { name, expected: "a null character is not allowed".into() });
        }
    }
    let settings = ConnectSettings {
        endpoints,
        application_name,
        options: take("options"),
        connect_timeout: connect_timeout(take("connect_timeout"))?,
        keepalives: Keepalives {
            enabled: number("keepalives", take("keepalives"))?.is_none_or(|value| value != 0),
            idle: number("keepalives_idle", take("keepalives_idle"))?.filter(|value| *value > 0).map(seconds),
            interval: number("keepalives_interval", take("keepalives_interval"))?
                .filter(|value| *value > 0)
                .map(seconds),
            count: number("keepalives_count", take("keepalives_count"))?.filter(|value| *value > 0),
        },
        tcp_user_timeout: number("tcp_user_timeout", take("tcp_user_timeout"))?
            .filter(|value| *value > 0)
            .map(|value| Duration::from_millis(value.into())),
        tls: tls(&mut take, home)?,
        channel_binding: choose(
            "channel_binding",
            take("channel_binding"),
            &[
                ("disable", ChannelBinding::Disable),
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
            ],
        )?,
        session_attrs: choose(
            "target_session_attrs",
            take("target_session_attrs"),
            &[
                ("any", SessionAttrs::Any),
                ("read-write", SessionAttrs::ReadWrite),
                ("read-only", SessionAttrs::ReadOnly),
            ],
        )?,
        user,
        dbname,
        password,
        password_note,
    };
    Ok(settings)
}

fn tls(take: &mut dyn FnMut(&str) -> Option<String>, home: Option<PathBuf>) -> Result<TlsSettings, SettingsError> {
    let folder = home.map(|home| home.join(".postgresql"));
    let (given, root) = (take("sslmode"), take("sslrootcert"));
    let system = root.as_deref() == Some("system");
    let mode = match given {
        // As in libpq: the system's roots vouch for far too much to leave the name unchecked.
        None if system => SslMode::VerifyFull,
        given => choose(
            "sslmode",
            given,
            &[
                ("disable", SslMode::Disable),
                ("allow", SslMode::Allow),
                ("prefer", SslMode::Prefer),
                ("require", SslMode::Require),
                ("verify-ca", SslMode::VerifyCa),
                ("verify-full", SslMode::VerifyFull),
            ],
        )?,
    };
    if system && mode != SslMode::VerifyFull {
        return Err(SettingsError::Value {
            name: "sslmode",
            expected: format!(
                "`{}` is too weak for sslrootcert=system, as any public certificate would do: use verify-full",
                mode.name()
            ),
        });
    }
    Ok(TlsSettings {
        mode,
        roots: match root {
            _ if system => RootCertificates::System,
            Some(path) => RootCertificates::File(path.into()),
            None => RootCertificates::Default(folder.as_ref().map(|folder| folder.join("root.crt"))),
        },
        certificate: take("sslcert").map(PathBuf::from),
        key: take("sslkey").map(PathBuf::from),
        default_folder: folder,
    })
}

/// libpq's rules for lists: `hostaddr` stands beside `host` one for one, and one port serves all.
fn endpoints(
    host: Option<String>,
    address: Option<String>,
    port: Option<String>,
    surroundings: &Surroundings,
) -> Result<Vec<Endpoint>, SettingsError> {
    let list = |text: Option<String>| -> Vec<String> {
        text.map(|text| text.split(',').map(|entry| entry.trim().to_owned()).collect()).unwrap_or_default()
    };
    let (hosts, addresses, ports) = (list(host), list(address), list(port));
    let count = hosts.len().max(addresses.len()).max(1);
    let mismatch = |name: &'static str, given: usize| SettingsError::Value {
        name,
        expected: format!("{given} are given for {count} hosts: give as many as there are hosts, or leave them out"),
    };
    if count > MAX_HOSTS {
        return Err(SettingsError::Value { name: "host", expected: format!("at most {MAX_HOSTS} hosts") });
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(mismatch("hostaddr", addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(mismatch("port", ports.len()));
    }
    let mut endpoints = Vec::with_capacity(count);
    for index in 0..count {
        let address = match addresses.get(index).filter(|text| !text.is_empty()) {
            Some(text) => Some(text.parse::<IpAddr>().map_err(|_| SettingsError::Value {
                name: "hostaddr",
                expected: "an IPv4 or IPv6 address is expected; a name goes into `host`".into(),
            })?),
            None => None,
        };
        let host = match (hosts.get(index).filter(|text| !text.is_empty()), address) {
            (Some(folder), _) if folder.starts_with('/') => Host::Unix(folder.into()),
            (Some(name), _) if name.starts_with('@') => {
                return Err(SettingsError::Value {
                    name: "host",
                    expected: "sockets in the abstract namespace are not supported: name the socket's folder".into(),
                });
            }
            (Some(name), _) => Host::Tcp(name.clone()),
            (None, Some(address)) => Host::Tcp(address.to_string()),
            (None, None) if surroundings.socket_folder => Host::Unix(SOCKET_FOLDER.into()),
            (None, None) => Host::Tcp("localhost".into()),
        };
        let port = match ports.get(index).or(ports.first()).filter(|text| !text.is_empty()) {
            None => DEFAULT_PORT,
            // The text is not shown: with an unencoded `:` or `/` in a URI it is a piece of the password.
            Some(text) => {
                text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(|| SettingsError::Value {
                    name: "port",
                    expected:
                        "a number from 1 to 65535 is expected (in a URI, `:`, `/` and `@` of a password must be percent-encoded)"
                            .into(),
                })?
            }
        };
        endpoints.push(Endpoint { host, address, port, password: None });
    }
    Ok(endpoints)
}

fn read_passfile(path: &Path, endpoints: &mut [Endpoint], dbname: &str, user: &str) -> Option<String> {
    let mut note = None;
    for endpoint in endpoints {
        // As in libpq the default socket folder stands as `localhost` in the file.
        let host = match &endpoint.host {
            Host::Unix(folder) if folder == Path::new(SOCKET_FOLDER) => "localhost".to_owned(),
            Host::Unix(folder) => folder.display().to_string(),
            Host::Tcp(name) => name.clone(),
        };
        match passfile::look_up(path, &Wanted { host: &host, port: endpoint.port, dbname, user }) {
            Lookup::Found(password) => endpoint.password = Some(password),
            Lookup::Nothing => {}
            Lookup::Ignored(reason) => note = Some(reason),
        }
    }
    note
}

fn refuse_others(name: &'static str, given: Option<String>, allowed: &[&str]) -> Result<(), SettingsError> {
    match given {
        Some(value) if !allowed.contains(&value.as_str()) => {
            let allowed = allowed.join(", ");
            Err(SettingsError::Value { name, expected: format!("only {allowed} can be used here: leave it out") })
        }
        _ => Ok(()),
    }
}

fn choose<T: Copy + Default>(
    name: &'static str,
    given: Option<String>,
    allowed: &[(&str, T)],
) -> Result<T, SettingsError> {
    let Some(given) = given else { return Ok(T::default()) };
    if let Some((_, value)) = allowed.iter().find(|(text, _)| *text == given) {
        return Ok(*value);
    }
    let texts: Vec<&str> = allowed.iter().map(|(text, _)| *text).collect();
    let shown: String = given.chars().take(40).collect::<String>().escape_debug().to_string();
    Err(SettingsError::Value { name, expected: format!("`{shown}` is not one of {}", texts.join(", ")) })
}

/// libpq takes negative numbers for 0 in all of these.
fn number(name: &'static str, given: Option<String>) -> Result<Option<u32>, SettingsError> {
    let Some(text) = given else { return Ok(None) };
    match text.trim().parse::<i32>() {
        Ok(value) => Ok(Some(u32::try_from(value).unwrap_or(0))),
        Err(_) => Err(SettingsError::Value { name, expected: "a whole number is expected".into() }),
    }
}

fn connect_timeout(given: Option<String>) -> Result<Option<Duration>, SettingsError> {
    Ok(match number("connect_timeout", given)? {
        None => Some(DEFAULT_CONNECT_TIMEOUT),
        Some(0) => None,
        // As libpq: 1 s is rounded up, as it could end at once.
        Some(value) => Some(seconds(value.max(2))),
    })
}

fn seconds(value: u32) -> Duration {
    Duration::from_secs(value.into())
}

#[cfg(test)]
#[path = "conninfo_tests.rs"]
mod tests;
