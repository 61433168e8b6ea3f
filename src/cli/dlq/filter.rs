//! Which rows are meant.

use std::time::Duration;

use clap::Args;
use walgate_sink::HumanDuration;

use crate::{
    config::Loaded,
    control::{dead_letters::Selection, parking::Filter},
};

/// Beyond it PostgreSQL's calendar ends.
const LONGEST: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// The conditions of a command line: all that are given must hold.
#[derive(Clone, Debug, Default, Args)]
pub struct FilterArgs {
    /// Of this sink.
    #[arg(long, value_name = "SINK", conflicts_with = "unrouted")]
    pub sink: Option<String>,
    /// Of events that no route matched: they have no sink.
    #[arg(long)]
    pub unrouted: bool,
    /// Of this event type, exactly.
    #[arg(long = "type", value_name = "TYPE")]
    pub event_type: Option<String>,
    /// There for this reason, as `list` shows it.
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// Of this key of events.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Of this event.
    #[arg(long, value_name = "ID")]
    pub event_id: Option<String>,
    /// With this number, as `list` shows it. May be repeated.
    #[arg(long, value_name = "NUMBER")]
    pub id: Vec<i64>,
    /// There for at least so long: 15m, 2h, 3days.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub older_than: Option<HumanDuration>,
    /// There for at most so long.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub newer_than: Option<HumanDuration>,
}

fn duration(text: &str) -> Result<HumanDuration, String> {
    let duration: HumanDuration = text.parse()?;
    if duration.0 > LONGEST { Err("a thousand years at the most".to_owned()) } else { Ok(duration) }
}

impl FilterArgs {
    /// Whether nothing was named: every row is meant.
    pub fn is_empty(&self) -> bool {
        self.sink.is_none() && !self.unrouted && self.filter() == Filter::default()
    }

    /// The conditions but for the sink.
    pub fn filter(&self) -> Filter {
        Filter {
            ids: self.id.clone(),
            event_id: self.event_id.clone(),
            event_type: self.event_type.clone(),
            reason: self.reason.clone(),
            key: self.key.clone(),
            older_than_seconds: self.older_than.map(|age| age.0.as_secs()),
            // To the second: rather one too many is looked at than one too few.
            newer_than_seconds: self.newer_than.map(|age| age.0.as_secs() + u64::from(age.0.subsec_nanos() > 0)),
        }
    }

    /// The rows that are meant.
    ///
    /// # Errors
    /// There is no such sink.
    pub fn selection(&self, loaded: &Loaded) -> Result<Selection, String> {
        let sink = match &self.sink {
            None if self.unrouted => Some(String::new()),
            None => None,
            Some(name) => Some(sink_name(loaded, name)?),
        };
        Ok(Selection { slot: loaded.config.source.slot.clone(), sink, filter: self.filter() })
    }
}

/// The name of a sink that there is.
///
/// # Errors
/// There is none of this name.
fn sink_name(loaded: &Loaded, name: &str) -> Result<String, String> {
    match name {
        "" | "-" => Err("events without a route have no sink: write --unrouted".to_owned()),
        name => loaded.sink(name).map(|sink| sink.name.clone()),
    }
}
