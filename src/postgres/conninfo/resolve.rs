//! From a connection string, a service file, the environment and defaults to settings.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use walgate_sink::Secret;

use super::{ChannelBinding, ConnectSettings, Endpoint, Host, Keepalives, SessionAttrs, SettingsError, SslMode};
use crate::postgres::{
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

/// What the machine says, apart from the environment's variables.
pub(super) struct Surroundings {
    user: Option<String>,
    socket_folder: bool,
}

impl Surroundings {
    pub(super) fn here() -> Self {
        Surroundings { user: whoami::username().ok(), socket_folder: Path::new(SOCKET_FOLDER).is_dir() }
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

pub(super) fn resolve(
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
mod tests;
