//! From files to parts: what `run`, `check` and `status` have in common.

use tokio_postgres::error::SqlState;
use walgate_sink::TargetField;

use super::{ConfigArgs, complain};
use crate::{
    config::{self, ConfigErrors, FileSource, Flag, KeyPath, Loaded, Sources},
    control::{ColumnRole, Link, LinkError, TableName, Wanted, WantedColumn},
    error::ExitStatus,
    postgres::{self, ConnectError, ConnectSettings},
    registry::Registry,
    router::{Mapping, Router, SinkTarget},
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
    let _ = write!(anstream::stderr(), "{}", errors.styled());
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
                errors.push_at(route_path(error.route, error.target, error.field.as_deref()), error.message);
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

fn route_path(route: usize, target: Option<usize>, field: Option<&str>) -> KeyPath {
    let mut path = KeyPath::root().key("routes").index(route);
    if let Some(target) = target {
        path = path.key("to").index(target);
    }
    match field {
        Some(field) => path.key(field),
        None => path,
    }
}

/// What a look at the server is to find there.
pub fn wanted(loaded: &Loaded, routing: &Routing, settings: &ConnectSettings) -> Wanted {
    let config = &loaded.config;
    let names = &config.outbox.columns;
    let mut columns = vec![
        WantedColumn::new(&names.id, ColumnRole::Id),
        WantedColumn::new(&names.event_type, ColumnRole::EventType),
        WantedColumn::new(&names.payload, ColumnRole::Payload),
    ];
    columns.extend(names.key.iter().map(|name| WantedColumn::new(name, ColumnRole::Key)));
    columns.extend(names.headers.iter().map(|name| WantedColumn::new(name, ColumnRole::Headers)));
    let others = config.outbox.header_columns.values().chain(routing.router.columns());
    columns.extend(others.map(|name| WantedColumn::new(name, ColumnRole::Other)));
    let table = routing.reader.table();
    Wanted {
        slot: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        table: TableName { schema: table.schema.clone(), name: table.name.clone() },
        columns,
        application_name: settings.application_name.clone(),
        count_rows: false,
    }
}
