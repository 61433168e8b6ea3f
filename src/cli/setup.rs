//! From files to parts: what `run`, `check` and `status` have in common.

use std::{collections::HashMap, sync::Arc};

use futures_util::FutureExt as _;
use tokio_postgres::error::SqlState;
use walgate_sink::{Secret, TargetField};

use super::{ConfigArgs, complain};
use crate::{
    config::{self, Config, ConfigErrors, FileSource, Flag, KeyPath, Loaded, Readable, Sink, Sources},
    control::{Link, LinkError, TableName, Wanted, cleanup::Plan},
    error::ExitStatus,
    pipeline::Connect,
    postgres::{self, ConnectError, ConnectSettings},
    registry::Registry,
    router::{Direct, Mapping, RouteError, RouteWarning, Router, SinkTarget},
    source::OutboxReader,
};

/// Loads the configuration; complains and gives the exit status where it cannot.
pub fn load(args: &ConfigArgs, registry: &Registry) -> Result<Loaded, ExitStatus> {
    let sources = sources(args).map_err(|message| {
        complain(&message);
        ExitStatus::Configuration
    })?;
    config::load_with_routes(sources, registry, &route_faults).map_err(|errors| refuse(&errors))
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

/// Where the clean-up connects: as the source does, or as `cleanup.url` says.
pub fn cleanup_settings(loaded: &Loaded, source: &ConnectSettings) -> Result<ConnectSettings, ConfigErrors> {
    let mut settings = match &loaded.config.cleanup.url {
        None => source.clone(),
        Some(url) => {
            let env = |name: &str| std::env::var(name).ok();
            ConnectSettings::parse(Some(url.expose()), &env).map_err(|error| {
                let mut errors = loaded.errors();
                errors.push_at(KeyPath::root().key("cleanup").key("url"), error.to_string());
                errors
            })?
        }
    };
    settings.application_name = format!("{}-cleanup", settings.application_name);
    Ok(settings)
}

/// Makes the clean-up's connections.
pub fn connector(settings: ConnectSettings) -> Connect {
    Arc::new(move || {
        let settings = settings.clone();
        async move { connect(&settings).await }.boxed()
    })
}

/// What the clean-up is to do.
pub fn cleanup_plan(config: &Config, reader: &OutboxReader) -> Plan {
    let table = reader.table();
    let table = TableName::new(&table.schema, &table.name);
    Plan { cleanup: config.cleanup.clone(), table, slot: config.source.slot.clone() }
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

/// By the names of sinks that get dead letters of others where in them those go.
pub type Letters = HashMap<String, Arc<Direct>>;

/// The compiled routes and the reader of the outbox that they need.
pub struct Routing {
    /// The routes.
    pub router: Router,
    /// The outbox's columns as events.
    pub reader: OutboxReader,
    /// Where dead letters go that are for other sinks.
    pub letters: Letters,
}

impl Routing {
    /// What the routes probably should not be. A sink without a route may be there for the dead letters of others.
    #[must_use]
    pub fn warnings(&self) -> Vec<RouteWarning> {
        let of_use = |warning: &RouteWarning| warning.route.is_some() || !self.letters.contains_key(&warning.sink);
        self.router.warnings().into_iter().filter(of_use).collect()
    }
}

/// Compiles the routes; every error of them has its place in the file.
pub fn routing(loaded: &Loaded) -> Result<Routing, ConfigErrors> {
    let config = &loaded.config;
    let mut errors = loaded.errors();
    let router = match Router::compile(&config.routes, &targets(&loaded.sinks), &Mapping::of(&config.outbox)) {
        Ok(router) => router,
        Err(found) => {
            for error in found {
                errors.push_at(place_of(&error, &loaded.sinks), &error.message);
            }
            return Err(errors);
        }
    };
    let (letters, faults) = letters(config, &loaded.sinks);
    for (path, message) in &faults {
        errors.push_at(path.clone(), message);
    }
    if !faults.is_empty() {
        return Err(errors);
    }
    match OutboxReader::new(config.outbox.clone(), router.columns()) {
        Ok(reader) => Ok(Routing { router, reader, letters }),
        Err(error) => {
            errors.push_at(KeyPath::root().key("outbox").key("table"), error.to_string());
            Err(errors)
        }
    }
}

/// Where the dead letters go that sinks get of others, by the names of those sinks; and what is wrong with that.
fn letters(config: &Config, sinks: &[Sink]) -> (Letters, Vec<(KeyPath, String)>) {
    let (mut letters, mut faults) = (Letters::new(), Vec::new());
    let (targets, mapping) = (targets(sinks), Mapping::of(&config.outbox));
    for sink in sinks {
        let Some(to) = &sink.delivery.dead_letter_to else { continue };
        match Direct::compile(&targets, to, &mapping) {
            Ok(direct) => {
                letters.insert(to.clone(), Arc::new(direct));
            }
            Err(Some(message)) => {
                let path = KeyPath::root().key("sinks").key(&sink.name).key("delivery").key("dead_letter_to");
                faults.push((path, message));
            }
            Err(None) => {}
        }
    }
    (letters, faults)
}

/// What is wrong with the routes, though the rest of the configuration may not be sound: routes to a sink that has
/// faults of its own are not judged.
pub fn route_faults(readable: &Readable<'_>) -> Vec<(KeyPath, String)> {
    let mut routes = readable.config.routes.clone();
    // Where each remaining target stood.
    let mut places: Vec<(usize, Vec<usize>)> = Vec::with_capacity(routes.len());
    let mut index = 0;
    routes.retain_mut(|route| {
        let mut kept = Vec::new();
        let mut target = 0;
        let targets_before = route.to.0.len();
        route.to.0.retain(|to| {
            let keep = !readable.faulty_sinks.contains(&to.sink);
            if keep {
                kept.push(target);
            }
            target += 1;
            keep
        });
        let keep = targets_before == 0 || !kept.is_empty();
        if keep {
            places.push((index, kept));
        }
        index += 1;
        keep
    });
    let mapping = Mapping::of(&readable.config.outbox);
    let (_, mut faults) = letters(readable.config, readable.sinks);
    let mut known = targets(readable.sinks);
    // So that a near miss of their names is seen as one.
    let faulty =
        |name: &String| SinkTarget { name: name.clone(), fields: &[], defaults: Vec::new(), check: |_, _| Ok(()) };
    known.extend(readable.faulty_sinks.iter().map(faulty));
    let found = match Router::compile(&routes, &known, &mapping) {
        // No route is left: what was there is wrong elsewhere.
        _ if routes.is_empty() && !readable.config.routes.is_empty() => return faults,
        Ok(_) => return faults,
        Err(found) => found,
    };
    for mut error in found {
        if let Some((route, kept)) = places.get(error.route) {
            error.route = *route;
            error.target = error.target.map(|target| kept.get(target).copied().unwrap_or(target));
        }
        faults.push((place_of(&error, readable.sinks), error.message));
    }
    faults
}

fn targets(sinks: &[Sink]) -> Vec<SinkTarget> {
    let target = |sink: &Sink| {
        let fields: &'static [TargetField] = sink.factory.target();
        SinkTarget {
            name: sink.name.clone(),
            fields,
            defaults: sink.targets.clone(),
            check: sink.factory.target_check(),
        }
    };
    sinks.iter().map(target).collect()
}

fn place_of(error: &RouteError, sinks: &[Sink]) -> KeyPath {
    let mut path = match error.sink.and_then(|sink| sinks.get(sink)) {
        Some(sink) => KeyPath::root().key("sinks").key(&sink.name).key(&sink.kind),
        None => KeyPath::root().key("routes").index(error.route),
    };
    if let (None, Some(pattern)) = (error.sink, error.pattern) {
        path = path.key("event_type").index(pattern);
    }
    if let (None, Some((key, value))) = (error.sink, &error.when) {
        path = path.key("when").key(key);
        path = value.map_or(path.clone(), |value| path.index(value));
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
    wanted_of(&loaded.config, routing, settings)
}

/// As [`wanted`], from a configuration alone.
pub fn wanted_of(config: &Config, routing: &Routing, settings: &ConnectSettings) -> Wanted {
    let table = routing.reader.table();
    Wanted::new(&config.source.slot, &config.source.publication, &table.schema, &table.name)
        .with_mapping(&config.outbox, routing.router.columns())
        .with_application_name(&settings.application_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_routes_are_reported_with_all_the_others() {
        let text = "\
source: { url: postgres://walgate@localhost/shop, slott: walgate }
sinks:
  console: { stdout: {} }
  second: { discard: { no_such_key: 1 } }
routes:
  - event_type: second.only
    to: [second]
  - event_type: [order.created, '']
    to: [console, second, consolle]
  - event_type: user.created
    to: [second, { sink: console, path: '/x' }]
  - event_type: user.deleted
    to: { sink: secnd }
limits: { inflight: 1 }
";
        let sources = Sources { file: FileSource::Text("walgate.yaml".into(), text.into()), ..Sources::default() };
        let errors = config::load_with_routes(sources, &Registry::built_in(), &route_faults).unwrap_err();
        insta::assert_snapshot!("all_errors_at_once", errors.to_string());
    }

    #[cfg(all(feature = "nats", feature = "webhook"))]
    #[test]
    fn conditions_segments_and_grammars_are_reported_with_their_place() {
        let text = "\
sinks:
  bus: { nats: { servers: ['localhost:4222'], subject: 'orders..{id}' } }
  hook:
    webhook: { url: 'https://localhost/hooks', unsigned: true, path: '/{event_type}/../x' }
routes:
  - event_type: 'order.*'
    when: { headers.tenant: acme, header.tenant: [acme], key: a }
    to:
      - { sink: bus, subject: 'orders.>' }
      - { sink: bus, subject: '$JS.API.{id}' }
      - { sink: bus, subject: 'a.{event_type[2]}' }
      - { sink: bus, subject: '{event_type[x]}' }
      - { sink: hook, path: 'orders/{id}' }
      - { sink: hook, path: '/a b/{id}' }
";
        let sources = Sources { file: FileSource::Text("walgate.yaml".into(), text.into()), ..Sources::default() };
        let errors = config::load_with_routes(sources, &Registry::built_in(), &route_faults).unwrap_err();
        insta::assert_snapshot!("faults_of_targets", errors.to_string());
    }

    #[cfg(all(feature = "nats", feature = "webhook"))]
    #[test]
    fn a_sink_that_gets_dead_letters_says_itself_where_they_go() {
        let text = "\
sinks:
  bus: { nats: { servers: ['localhost:4222'] } }
  hook:
    webhook: { url: 'https://localhost/hooks', unsigned: true }
    delivery: { dead_letter_to: bus }
routes:
  - event_type: '**'
    to: hook
";
        let sources = Sources { file: FileSource::Text("walgate.yaml".into(), text.into()), ..Sources::default() };
        let errors = config::load_with_routes(sources, &Registry::built_in(), &route_faults).unwrap_err().to_string();
        let place = "walgate.yaml:5:33: sinks.hook.delivery.dead_letter_to: sink `bus` does not say where in it";
        assert!(errors.contains(place) && errors.contains("`subject` must stand"), "{errors}");
    }
}
