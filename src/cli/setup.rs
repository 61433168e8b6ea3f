//! From files to parts: what `run`, `check` and `status` have in common.

use tokio_postgres::error::SqlState;
use walgate_sink::{Secret, TargetField};

use super::{ConfigArgs, complain};
use crate::{
    config::{self, ConfigErrors, FileSource, Flag, KeyPath, Loaded, Sources},
    control::{Link, LinkError, Wanted},
    error::ExitStatus,
    postgres::{self, ConnectError, ConnectSettings},
    registry::Registry,
    router::{Mapping, RouteError, Router, SinkTarget},
    source::OutboxReader,
};

/// Loads the configuration; complains and gives the exit status where it cannot.
pub fn load(args: &ConfigArgs, registry: &Registry) -> Result<Loaded, ExitStatus> {
    let sources = sources(args).map_err(|message| {
        complain(&message);
        ExitStatus::Configuration
    })?;
    config::load(sources, registry).map_err(|errors| refuse(&errors))
}

/// The file, the environment and `--set`.
pub fn sources(args: &ConfigArgs) -> Result<Sources, String> {
    let flags = args
        .set
        .iter()
        .map(|set| match set.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Flag { flag: format!("--set {key}"), key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("`--set {set}` has no value: write --set KEY=VALUE, such as --set source.slot=walgate")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut sources = Sources::from_process(None, flags);
    sources.file = FileSource::Path(args.config.clone());
    Ok(sources)
}

/// Prints every error of a configuration.
pub fn refuse(errors: &ConfigErrors) -> ExitStatus {
    use std::io::Write;
    // Standard error may be closed: then nobody reads it.
    let _ = writeln!(anstream::stderr(), "{}", errors.styled());
    ExitStatus::Configuration
}

/// Where PostgreSQL is, as the configuration and libpq's environment say.
pub fn settings(loaded: &Loaded) -> Result<ConnectSettings, ConfigErrors> {
    let source = &loaded.config.source;
    let env = |name: &str| std::env::var(name).ok();
    let parsed = ConnectSettings::parse(source.url.as_ref().map(|url| url.expose()), &env);
    match parsed {
        Ok(mut settings) => {
            if let Some(password) = &source.password {
                settings.set_password(password.clone());
            }
            Ok(settings)
        }
        Err(error) => {
            let mut errors = loaded.errors();
            errors.push_at(KeyPath::root().key("source").key("url"), error.to_string());
            Err(errors)
        }
    }
}

/// An SQL connection.
pub async fn connect(settings: &ConnectSettings) -> Result<Link, LinkError> {
    let (client, connection) = postgres::connect_sql(settings).await.map_err(link_error)?;
    Ok(Link::new(client, connection))
}

/// An SQL connection to a URL of the command line; libpq's environment fills in the rest.
pub async fn connect_to(url: &Secret) -> Result<Link, LinkError> {
    let env = |name: &str| std::env::var(name).ok();
    let settings =
        ConnectSettings::parse(Some(url.expose()), &env).map_err(|error| LinkError::new(error.to_string()))?;
    connect(&settings).await
}

fn link_error(error: ConnectError) -> LinkError {
    let sqlstate = match &error {
        ConnectError::Refused { error, .. } => Some(SqlState::from_code(&error.sqlstate)),
        // Nothing that passes by itself: as a wrong password.
        ConnectError::PasswordMissing { .. } => Some(SqlState::INVALID_PASSWORD),
        _ => None,
    };
    LinkError { message: error.to_string(), sqlstate }
}

/// The compiled routes and the reader of the outbox that they need.
pub struct Routing {
    /// The routes.
    pub router: Router,
    /// The outbox's columns as events.
    pub reader: OutboxReader,
}

/// Compiles the routes; every error of them has its place in the file.
pub fn routing(loaded: &Loaded) -> Result<Routing, ConfigErrors> {
    let config = &loaded.config;
    let sinks: Vec<SinkTarget> = loaded
        .sinks
        .iter()
        .map(|sink| {
            let fields: &'static [TargetField] = sink.factory.target();
            SinkTarget { name: sink.name.clone(), fields, defaults: sink.targets.clone() }
        })
        .collect();
    let mut errors = loaded.errors();
    let router = match Router::compile(&config.routes, &sinks, &Mapping::of(&config.outbox)) {
        Ok(router) => router,
        Err(found) => {
            for error in found {
                errors.push_at(place_of(&error, loaded), &error.message);
            }
            return Err(errors);
        }
    };
    match OutboxReader::new(config.outbox.clone(), router.columns()) {
        Ok(reader) => Ok(Routing { router, reader }),
        Err(error) => {
            errors.push_at(KeyPath::root().key("outbox").key("table"), error.to_string());
            Err(errors)
        }
    }
}

fn place_of(error: &RouteError, loaded: &Loaded) -> KeyPath {
    let mut path = match error.sink.and_then(|sink| loaded.sinks.get(sink)) {
        Some(sink) => KeyPath::root().key("sinks").key(&sink.name).key(&sink.kind),
        None => KeyPath::root().key("routes").index(error.route),
    };
    if let (None, Some(pattern)) = (error.sink, error.pattern) {
        path = path.key("event_type").index(pattern);
    }
    if let (None, Some(target)) = (error.sink, error.target) {
        path = path.key("to").index(target);
    }
    match &error.field {
        Some(field) => path.key(field),
        None => path,
    }
}

/// What a look at the server is to find there.
pub fn wanted(loaded: &Loaded, routing: &Routing, settings: &ConnectSettings) -> Wanted {
    let config = &loaded.config;
    let table = routing.reader.table();
    Wanted::new(&config.source.slot, &config.source.publication, &table.schema, &table.name)
        .with_mapping(&config.outbox, routing.router.columns())
        .with_application_name(&settings.application_name)
}
