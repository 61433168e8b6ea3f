use super::*;
use crate::postgres::Transport;

fn parse_with(text: &str, env: &[(&str, &str)]) -> Result<ConnectSettings, SettingsError> {
    let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    resolve(Some(text), &env, &Surroundings { user: Some("os".into()), socket_folder: false })
}

fn parse(text: &str) -> Result<ConnectSettings, SettingsError> {
    parse_with(text, &[])
}

/// Where to, as whom, and with which password (which only this test shows).
fn shown(settings: &ConnectSettings) -> String {
    let password = settings.password_for(&settings.endpoints[0]).map_or("-", Secret::expose);
    format!("{settings} {password}")
}

#[test]
fn connection_strings_are_read_as_libpq_reads_them() {
    for (text, expected) in [
        // URIs, most of them of libpq's own tests.
        ("postgresql://uri-user:secret@host:12345/db", "uri-user@host:12345/db secret"),
        ("postgresql://uri-user@host:12345/db", "uri-user@host:12345/db -"),
        ("postgresql://uri-user@host/db", "uri-user@host:5432/db -"),
        ("postgresql://host:12345/db", "os@host:12345/db -"),
        ("postgresql://host/db", "os@host:5432/db -"),
        ("postgresql://uri-user@host:12345/", "uri-user@host:12345/uri-user -"),
        ("postgresql://uri-user@host/", "uri-user@host:5432/uri-user -"),
        ("postgresql://uri-user@", "uri-user@localhost:5432/uri-user -"),
        ("postgresql://host:12345/", "os@host:12345/os -"),
        ("postgresql://host:12345", "os@host:12345/os -"),
        ("postgresql://host", "os@host:5432/os -"),
        ("postgresql://", "os@localhost:5432/os -"),
        ("postgres://", "os@localhost:5432/os -"),
        ("postgres:///", "os@localhost:5432/os -"),
        ("postgres:///db", "os@localhost:5432/db -"),
        ("postgresql://?hostaddr=127.0.0.1", "os@127.0.0.1:5432/os -"),
        ("postgresql://example.com?hostaddr=63.1.2.4", "os@example.com:5432/os -"),
        ("postgresql://%68ost/", "os@host:5432/os -"),
        ("postgresql://host/db?user=uri-user", "uri-user@host:5432/db -"),
        ("postgresql://host/db?user=uri-user&port=12345", "uri-user@host:12345/db -"),
        ("postgresql://host/db?u%73er=someotheruser&port=12345", "someotheruser@host:12345/db -"),
        ("postgresql://host:12345?user=uri-user", "uri-user@host:12345/uri-user -"),
        ("postgresql://host?user=uri-user", "uri-user@host:5432/uri-user -"),
        ("postgresql://host?", "os@host:5432/os -"),
        ("postgresql://host/?connect_timeout=3&", "os@host:5432/os -"),
        ("postgresql://[::1]:12345/db", "os@[::1]:12345/db -"),
        ("postgresql://[::1]/db", "os@[::1]:5432/db -"),
        ("postgresql://[2001:db8::1234]/", "os@[2001:db8::1234]:5432/os -"),
        ("postgresql://[::1]", "os@[::1]:5432/os -"),
        ("postgresql://[::1],[::2]:5/db", "os@[::1]:5432,[::2]:5/db -"),
        ("postgres://@host", "os@host:5432/os -"),
        ("postgres://:@host", "os@host:5432/os -"),
        ("postgres://:pw@host", "os@host:5432/os pw"),
        ("postgres://u:@host", "u@host:5432/u -"),
        ("postgres://u:p:w@host", "u@host:5432/u p:w"),
        ("postgres://u:p%40w%2F%25@host", "u@host:5432/u p@w/%"),
        ("postgres://h1:1,h2:2/db", "os@h1:1,h2:2/db -"),
        ("postgres://h1,h2:2,h3/db", "os@h1:5432,h2:2,h3:5432/db -"),
        ("postgres://h1,h2/db?port=7", "os@h1:7,h2:7/db -"),
        ("postgres:///db?host=h1,h2&port=1,2", "os@h1:1,h2:2/db -"),
        ("postgres://%2Fvar%2Frun/db", "os@/var/run/.s.PGSQL.5432/db -"),
        ("postgres://u@%2Ftmp:5433/db", "u@/tmp/.s.PGSQL.5433/db -"),
        ("postgres:///db?host=/tmp", "os@/tmp/.s.PGSQL.5432/db -"),
        ("postgres://host/db?host=/tmp", "os@/tmp/.s.PGSQL.5432/db -"),
        ("postgres://%2Ftmp,db:7/x", "os@/tmp/.s.PGSQL.5432,db:7/x -"),
        ("postgres://host/d%C3%A4ta", "os@host:5432/däta -"),
        // key=value
        ("", "os@localhost:5432/os -"),
        ("   ", "os@localhost:5432/os -"),
        ("host=h port=1 dbname=d user=u password=p", "u@h:1/d p"),
        ("host = h  port= 1\tdbname =d\nuser=u", "u@h:1/d -"),
        ("host='h' user='a b' password='it\\'s'", "a b@h:5432/a b it's"),
        ("password='a\\\\b'", "os@localhost:5432/os a\\b"),
        ("password=a\\ b", "os@localhost:5432/os a b"),
        ("password=a\\'b", "os@localhost:5432/os a'b"),
        ("password='' host=h", "os@h:5432/os -"),
        ("password= host=h", "os@localhost:5432/os host=h"),
        ("host='h'port=1", "os@h:1/os -"),
        ("host=a host=b", "os@b:5432/os -"),
        ("host=h1,h2 port=1,2", "os@h1:1,h2:2/os -"),
        ("host=h1,h2 port=9", "os@h1:9,h2:9/os -"),
        ("host=h1,h2 port=,2", "os@h1:5432,h2:2/os -"),
        ("host=,h2", "os@localhost:5432,h2:5432/os -"),
        ("hostaddr=::1", "os@[::1]:5432/os -"),
        ("host=h hostaddr=10.0.0.1", "os@h:5432/os -"),
        ("host=/tmp port=5433", "os@/tmp/.s.PGSQL.5433/os -"),
        ("dbname=a=b", "os@localhost:5432/a=b -"),
        ("client_encoding=UTF8 gssencmode=disable sslnegotiation=postgres", "os@localhost:5432/os -"),
    ] {
        match parse(text) {
            Ok(settings) => assert_eq!(shown(&settings), expected, "{text}"),
            Err(error) => panic!("{text}: {error}"),
        }
    }
}

#[test]
fn errors_say_where_and_what_and_never_show_a_password() {
    for (text, says) in [
        ("postgresql://host/db?zzz", "at character 22: `=` is missing"),
        ("postgresql://host/db?value1&value2", "`=` is missing"),
        ("postgresql://host/db?user=a=b", "two `=`"),
        ("postgresql://host?uzer=", "unknown parameter `uzer`: did you mean `user`?"),
        ("postgresql://host?zzz=x", "unknown parameter `zzz`"),
        ("postgres://[::1", "at character 12: the IPv6 address"),
        ("postgres://[]", "an IPv6 address is missing"),
        ("postgres://[::1]z", "may follow an IPv6 address"),
        ("postgresql://%", "two hexadecimal digits"),
        ("postgresql://%1", "two hexadecimal digits"),
        ("postgresql://%1g", "two hexadecimal digits"),
        ("postgresql://%00", "%00 is not allowed"),
        ("postgresql://%FF", "not UTF-8"),
        ("postgres://u:canary@x@host/db", "percent-encode"),
        ("postgres://u:canary/x@host/db", "percent-encode"),
        ("postgres://u:1/canary@host/db", "percent-encode"),
        ("postgres://host:0/db", "`port`: a number from 1 to 65535"),
        ("postgres://host:65536", "`port`"),
        ("postgres://host:canary", "`port`"),
        ("host", "at character 1: `=` is missing"),
        ("host=h password=canary more", "at character 24: `=` is missing"),
        ("password=x canary!=1", "not a parameter's name"),
        ("=x", "name is missing before `=`"),
        ("password='canary", "no end"),
        ("hots=h", "unknown parameter `hots`: did you mean `host`?"),
        ("sslmod=require", "did you mean `sslmode`?"),
        ("passwort=canary", "did you mean `password`?"),
        ("require_auth=scram-sha-256", "`require_auth` is libpq's but not supported"),
        ("replication=database", "`replication` is libpq's but not supported"),
        ("sslmode=verify", "`verify` is not one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=require sslrootcert=system", "too weak"),
        ("channel_binding=yes", "disable, prefer, require"),
        ("target_session_attrs=primary", "any, read-write, read-only"),
        ("connect_timeout=soon", "`connect_timeout`: a whole number"),
        ("client_encoding=LATIN1", "`client_encoding`: only UTF8"),
        ("gssencmode=require", "`gssencmode`"),
        ("sslnegotiation=direct", "`sslnegotiation`"),
        ("hostaddr=example.com", "a name goes into `host`"),
        ("host=a,b hostaddr=1.2.3.4", "`hostaddr`: 1 are given for 2 hosts"),
        ("host=a,b,c port=1,2", "`port`: 2 are given for 3 hosts"),
        ("host=@abstract", "abstract"),
        ("host=a\0b password=x", "null character"),
        ("service=none", "connection service `none` is not defined"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
        assert!(!error.contains("canary"), "{text}: {error}");
    }
    let many = vec!["h"; 65].join(",");
    assert!(parse(&format!("host={many}")).is_err());
}

#[test]
fn the_environment_completes_the_string_and_an_empty_variable_is_none() {
    let env = [
        ("PGHOST", "envhost"),
        ("PGPORT", "6000"),
        ("PGDATABASE", "envdb"),
        ("PGUSER", "envuser"),
        ("PGPASSWORD", "envpw"),
        ("PGSSLMODE", "disable"),
        ("PGAPPNAME", "envapp"),
        ("PGCONNECT_TIMEOUT", "1"),
        ("PGOPTIONS", "-c a=b"),
        ("PGCHANNELBINDING", "require"),
        ("PGTARGETSESSIONATTRS", "read-write"),
    ];
    let settings = parse_with("", &env).unwrap();
    assert_eq!(shown(&settings), "envuser@envhost:6000/envdb envpw");
    assert_eq!((settings.tls.mode, settings.application_name.as_str()), (SslMode::Disable, "envapp"));
    assert_eq!(settings.connect_timeout, Some(Duration::from_secs(2)), "as libpq: 2 s at least");
    assert_eq!(settings.options.as_deref(), Some("-c a=b"));
    assert_eq!(settings.channel_binding, ChannelBinding::Require);
    assert_eq!(settings.session_attrs, SessionAttrs::ReadWrite);
    let settings = parse_with("postgres://u:p@h:1/d?sslmode=require&application_name=x", &env).unwrap();
    assert_eq!(shown(&settings), "u@h:1/d p");
    assert_eq!((settings.tls.mode, settings.application_name.as_str()), (SslMode::Require, "x"));
    let empty = [("PGHOST", ""), ("PGSSLMODE", ""), ("PGPORT", "")];
    let settings = parse_with("", &empty).unwrap();
    assert_eq!((shown(&settings).as_str(), settings.tls.mode), ("os@localhost:5432/os -", SslMode::Prefer));
}

#[test]
fn what_is_not_set_has_a_default() {
    let settings = parse("").unwrap();
    assert_eq!(settings.application_name, "walgate");
    assert_eq!(settings.connect_timeout, Some(Duration::from_secs(10)));
    assert_eq!(parse("connect_timeout=0").unwrap().connect_timeout, None);
    assert_eq!(parse("fallback_application_name=f").unwrap().application_name, "f");
    assert!(settings.keepalives.enabled && !parse("keepalives=0").unwrap().keepalives.enabled);
    let keepalives = parse("keepalives_idle=7 keepalives_interval=0 keepalives_count=3").unwrap().keepalives;
    assert_eq!(keepalives, Keepalives { enabled: true, idle: Some(seconds(7)), interval: None, count: Some(3) });
    assert_eq!(parse("tcp_user_timeout=1500").unwrap().tcp_user_timeout, Some(Duration::from_millis(1500)));
    let none = |_: &str| None;
    let local = resolve(None, &none, &Surroundings { user: Some("os".into()), socket_folder: true }).unwrap();
    assert_eq!(local.to_string(), "os@/var/run/postgresql/.s.PGSQL.5432/os");
    let error = resolve(None, &none, &Surroundings { user: None, socket_folder: true }).unwrap_err();
    assert!(error.to_string().contains("PGUSER"), "{error}");
}

#[test]
fn tls_settings_follow_libpq() {
    let home = [("HOME", "/home/x")];
    let tls = |text: &str| parse_with(text, &home).unwrap().tls;
    assert_eq!(tls("").roots, RootCertificates::Default(Some("/home/x/.postgresql/root.crt".into())));
    assert_eq!(tls("sslrootcert=/ca.crt").roots, RootCertificates::File("/ca.crt".into()));
    let system = tls("sslrootcert=system");
    assert_eq!((system.mode, system.roots), (SslMode::VerifyFull, RootCertificates::System));
    assert_eq!(tls("postgres://h/?ssl=true").mode, SslMode::Require);
    let host = Host::Tcp("h".into());
    for (mode, transports) in [
        ("disable", &[Transport::Plain][..]),
        ("allow", &[Transport::Plain, Transport::TlsRequired]),
        ("prefer", &[Transport::TlsIfOffered, Transport::Plain]),
        ("require", &[Transport::TlsRequired]),
        ("verify-ca", &[Transport::TlsRequired]),
        ("verify-full", &[Transport::TlsRequired]),
    ] {
        let mode_found = tls(&format!("sslmode={mode}")).mode;
        assert_eq!((mode_found.name(), mode_found.transports(&host)), (mode, transports));
        assert_eq!(mode_found.transports(&Host::Unix("/tmp".into())), [Transport::Plain]);
    }
}

#[test]
fn no_text_of_the_settings_shows_a_password() {
    let mut settings = parse("postgres://u:canary@h/d").unwrap();
    assert!(!format!("{settings:?}{settings}").contains("canary"));
    let config = settings.to_tokio_postgres(&settings.endpoints[0], Transport::Plain);
    assert!(!format!("{config:?}").contains("canary"));
    assert_eq!(config.get_password(), Some(&b"canary"[..]));
    settings.set_password(Secret::new("canary2"));
    assert_eq!(shown(&settings), "u@h:5432/d canary2");
    assert!(!format!("{settings:?}").contains("canary2"));
}

#[test]
fn a_password_file_and_a_service_file_are_used() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(".pgpass");
    std::fs::write(&path, "h1:1:d:u:one\nh2:*:*:*:two\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(home.path().join(".pg_service.conf"), "[shop]\nhost=h1,h2\nport=1,2\nuser=u\ndbname=d\n").unwrap();
    let folder = home.path().to_str().unwrap();
    let env = [("HOME", folder), ("PGUSER", "nobody")];
    let settings = parse_with("service=shop", &env).unwrap();
    assert_eq!(settings.to_string(), "u@h1:1,h2:2/d");
    let passwords: Vec<_> =
        settings.endpoints.iter().map(|endpoint| settings.password_for(endpoint).unwrap().expose()).collect();
    assert_eq!(passwords, ["one", "two"]);
    let settings = parse_with("port=7", &[("HOME", folder), ("PGSERVICE", "shop")]).unwrap();
    assert_eq!(settings.to_string(), "u@h1:7,h2:7/d");
    let settings = parse_with("service=shop password=own", &env).unwrap();
    assert_eq!(shown(&settings), "u@h1:1,h2:2/d own");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let settings = parse_with("service=shop", &env).unwrap();
    assert!(settings.password_for(&settings.endpoints[0]).is_none());
    assert!(settings.password_note().unwrap().contains("chmod 600"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(postgres://)?[a-z=@:/?%&',\\[\\]\\\\ 0-9\u{e4}]{0,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn quoting_keeps_any_value(value in "[^\0]{1,40}") {
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        let settings = parse(&format!("host=h password='{quoted}'")).unwrap();
        let password = settings.password_for(&settings.endpoints[0]).unwrap();
        proptest::prop_assert_eq!(password.expose(), value);
    }
}
