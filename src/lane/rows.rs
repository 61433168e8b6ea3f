//! A delivery as a row, and back; what is remembered of its attempts.

use std::time::Instant;

use walgate_sink::{Delivery, Target, Timestamp};

use super::{
    Lane,
    lot::rejection_of,
    machine::Trouble,
    work::{Debt, History, Item, Work},
};
use crate::control::parking::{Attempted, HoldKey, Parcel, Stored};

impl Lane {
    /// A row as a delivery in memory.
    pub(super) fn item(&self, row: Stored, held: bool, now: Instant) -> Item {
        let policy = self.lot.policy.as_ref();
        let fields = policy.map_or(&[][..], |policy| policy.fields);
        let Stored { id, event, target, ordering_key, dedup_id, route, attempts, rejected, errors, .. } = row;
        let value = |name: &str| target.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let target = Target::new(fields, fields.iter().map(|field| value(field.name)));
        let number = policy.and_then(|policy| policy.routes.find(&route));
        let delivery = Delivery { event, target, ordering_key, dedup_id, attempt: 0 };
        let work = Work {
            delivery,
            debt: Debt::Parked { row: id, held },
            // A route that is there no more has no metrics.
            route: number.unwrap_or(u16::MAX),
            invalid: rejected.map(|(reason, message)| rejection_of(&reason, &message)),
        };
        let mut item = Item::new(work);
        item.attempts = attempts;
        if !errors.is_empty() {
            let mut history = History::new(now);
            errors.into_iter().for_each(|error| history.add(error));
            item.history = Some(Box::new(history));
        }
        item
    }

    /// A delivery as a row.
    pub(super) fn parcel(&self, item: &Item, hold: Option<HoldKey>) -> Parcel {
        let mut delivery = item.work.delivery.clone();
        delivery.attempt = item.attempts;
        let label = self.lot.policy.as_ref().and_then(|policy| policy.routes.label(item.work.route));
        let invalid = item.work.invalid.as_ref();
        Parcel {
            delivery,
            route: label.map(|label| (&*label).into()).unwrap_or_default(),
            hold,
            reason: invalid.map(|rejection| rejection.reason.as_str().into()),
            message: invalid.map(|rejection| rejection.message.clone()),
            contents: true,
            errors: item.history.as_ref().map(|history| history.errors.iter().cloned().collect()).unwrap_or_default(),
        }
    }

    /// Remembers a failed attempt.
    pub(super) fn remember(&self, item: &mut Item, kind: &'static str, error: &str, now: Instant) {
        if !self.makes_letters() {
            return;
        }
        let attempted = Attempted { at: self.wall(now), kind: kind.into(), error: crate::telemetry::sentence(error) };
        item.history.get_or_insert_with(|| Box::new(History::new(now))).add(attempted);
    }

    /// The wall clock's time at `now`.
    pub(super) fn wall(&self, now: Instant) -> Timestamp {
        let (then, wall) = self.clock;
        let micros = i64::try_from(now.saturating_duration_since(then).as_micros()).unwrap_or(i64::MAX);
        Timestamp(wall.0.saturating_add(micros))
    }

    /// Whether there is a place for dead letters: the table, or another sink.
    fn makes_letters(&self) -> bool {
        self.lot.is_usable() || self.policy.destination.is_some()
    }

    /// Why a delivery is not attempted again, though it may be taken one day.
    pub(super) fn given_up(&self, item: &Item, now: Instant) -> Option<(&'static str, String)> {
        if !self.makes_letters() {
            return None;
        }
        if self.policy.max_attempts.is_some_and(|most| item.attempts >= most) {
            return Some((
                "max_attempts",
                format!("{} attempts failed, as many as `max_attempts` allows", item.attempts),
            ));
        }
        let since = item.history.as_ref()?.since;
        let age = now.saturating_duration_since(since);
        let most = self.policy.max_age.filter(|most| age >= *most)?;
        Some((
            "max_age",
            format!("it has failed for {}, as long as `max_age` allows", humantime::format_duration(most)),
        ))
    }

    /// The latest failure, for the status.
    pub(super) fn note_trouble(
        &mut self,
        item: &Item,
        message: &str,
        kind: &'static str,
        now: Instant,
        next_retry: Option<Instant>,
    ) {
        let event = Some((item.work.delivery.event.id.clone(), item.attempts));
        self.last_error = Some(Trouble { message: message.to_owned(), kind, at: now, next_retry, event });
    }
}
