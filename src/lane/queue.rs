//! The keyed queue: whose turn it is.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use bytestring::ByteString;
use walgate_sink::Position;

use super::work::{Item, Work};

/// An empty queue keeps at most this many places.
const KEPT_PLACES: usize = 1024;

/// Ready deliveries, and a queue for each busy key. Pure; every operation is O(1) amortized.
///
/// A key is *busy* while an event of it, its *head*, has an unsettled delivery. Only deliveries of the head are ever
/// ready, so two events of a key cannot be in flight together. A key that is not busy leaves no trace.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Had a turn before, or waited behind their key: older than what is ready, and so served first.
    urgent: VecDeque<Item>,
    /// Their first turn, in the order of commits.
    ready: VecDeque<Item>,
    /// It is their turn, and they cannot be sent.
    invalid: VecDeque<Item>,
    keys: HashMap<ByteString, Busy>,
    /// Deliveries behind the heads of their keys.
    behind: usize,
    /// Keys that are halted; deliveries without a key count each.
    halted: usize,
}

#[derive(Debug)]
struct Busy {
    head: Position,
    /// Unsettled deliveries of the head. Never 0.
    open: u32,
    /// A delivery of the head is held for good.
    halted: bool,
    /// Unsettled deliveries that came from the stream: of the head, and behind it.
    live: usize,
    /// Deliveries of later events, in order.
    behind: VecDeque<Item>,
}

impl Queue {
    /// Takes in a delivery: it is ready, or behind its key.
    pub(super) fn push(&mut self, item: Item) {
        let work = &item.work;
        let head = work.delivery.event.position;
        if let Some(key) = &work.delivery.ordering_key {
            match self.keys.entry(key.clone()) {
                Entry::Vacant(entry) => {
                    let live = usize::from(work.is_live());
                    entry.insert(Busy { head, open: 1, halted: false, live, behind: VecDeque::new() });
                }
                Entry::Occupied(mut entry) => {
                    let busy = entry.get_mut();
                    busy.live += usize::from(work.is_live());
                    if busy.head != head {
                        if busy.behind.is_empty() {
                            // Many keys with one event behind are common: no room for four at once.
                            busy.behind.reserve_exact(1);
                        }
                        busy.behind.push_back(item);
                        self.behind += 1;
                        return;
                    }
                    // Another target of the head: there is no order between the deliveries of one event.
                    busy.open += 1;
                }
            }
        }
        // A dead letter of another sink is older than what came from the stream meanwhile.
        let late = work.is_live() && self.ready.back().is_some_and(|last| last.position() > head);
        let list = match work.invalid {
            Some(_) => &mut self.invalid,
            None if late => &mut self.urgent,
            None => &mut self.ready,
        };
        list.push_back(item);
    }

    /// A delivery that is to be tried again. Its key is still busy with it.
    pub(super) fn again(&mut self, item: Item) {
        self.urgent.push_back(item);
    }

    /// The next delivery to send. `fresh`: prefer those that were never tried.
    pub(super) fn pop(&mut self, fresh: bool) -> Option<Item> {
        let (first, second) =
            if fresh { (&mut self.ready, &mut self.urgent) } else { (&mut self.urgent, &mut self.ready) };
        first.pop_front().or_else(|| second.pop_front())
    }

    /// What [`Queue::pop`] would give.
    pub(super) fn peek(&self, fresh: bool) -> Option<&Item> {
        let (first, second) = if fresh { (&self.ready, &self.urgent) } else { (&self.urgent, &self.ready) };
        first.front().or_else(|| second.front())
    }

    /// The next delivery that cannot be sent.
    pub(super) fn pop_invalid(&mut self) -> Option<Item> {
        self.invalid.pop_front()
    }

    /// A delivery of the head of this key is settled; `live`: it came from the stream. With the last one the key's next
    /// event has its turn. Whether that is one from the stream.
    pub(super) fn settled(&mut self, key: Option<&ByteString>, live: bool) -> bool {
        let Some(key) = key else { return false };
        self.withdraw(Some(key), live);
        self.pass_on(key)
    }

    /// A delivery of the head of this key has left by another way; [`Queue::take_live`] or [`Queue::pass_on`] follows.
    pub(super) fn withdraw(&mut self, key: Option<&ByteString>, live: bool) {
        if let Some(busy) = key.and_then(|key| self.keys.get_mut(key)) {
            busy.open = busy.open.saturating_sub(1);
            busy.live = busy.live.saturating_sub(usize::from(live));
        }
    }

    /// Where the head of this key has no delivery left, the next event has its turn. Whether that is one from the
    /// stream.
    pub(super) fn pass_on(&mut self, key: &ByteString) -> bool {
        let Some(busy) = self.keys.get_mut(key).filter(|busy| busy.open == 0) else { return false };
        let Some(next) = busy.behind.pop_front() else {
            self.keys.remove(key);
            return false;
        };
        busy.head = next.position();
        let live = next.is_live();
        let mut turn = Some(next);
        while let Some(item) = turn {
            busy.open += 1;
            self.behind -= 1;
            let list = if item.work.invalid.is_some() { &mut self.invalid } else { &mut self.urgent };
            list.push_back(item);
            turn = busy.behind.pop_front_if(|item| item.position() == busy.head);
        }
        live
    }

    /// Whether this key has unsettled deliveries that came from the stream.
    pub(super) fn has_live(&self, key: Option<&ByteString>) -> bool {
        key.and_then(|key| self.keys.get(key)).is_some_and(|busy| busy.live > 0)
    }

    /// Whether a delivery of this key's head is held for good.
    pub(super) fn is_halted(&self, key: Option<&ByteString>) -> bool {
        key.and_then(|key| self.keys.get(key)).is_some_and(|busy| busy.halted)
    }

    /// What was held for good of this key is decided: [`Queue::settled`] follows.
    pub(super) fn unhalt(&mut self, key: Option<&ByteString>) {
        let was = match key {
            Some(key) => self.keys.get_mut(key).is_some_and(|busy| std::mem::replace(&mut busy.halted, false)),
            None => true,
        };
        self.halted = self.halted.saturating_sub(usize::from(was));
    }

    /// Takes out the deliveries that came from the stream, in the order of commits: but for those of halted keys, and for
    /// those behind a delivery from the stream that is in flight or waits elsewhere. What is taken out may be written
    /// down: of each key, whatever came before it is done, written down already, or taken out with it.
    pub(super) fn take_live(&mut self) -> Vec<Item> {
        let mut out = Vec::new();
        for list in [&mut self.urgent, &mut self.ready, &mut self.invalid] {
            for item in std::mem::take(list) {
                let halted = item.key().and_then(|key| self.keys.get(key)).is_some_and(|busy| busy.halted);
                if halted || !item.is_live() {
                    list.push_back(item);
                    continue;
                }
                if let Some(busy) = item.key().and_then(|key| self.keys.get_mut(key)) {
                    busy.open = busy.open.saturating_sub(1);
                    busy.live = busy.live.saturating_sub(1);
                }
                out.push(item);
            }
        }
        let mut free = Vec::new();
        for (key, busy) in self.keys.iter_mut().filter(|(_, busy)| !busy.halted) {
            let live_behind = busy.behind.iter().filter(|item| item.is_live()).count();
            if live_behind == busy.live {
                let (leaving, staying): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut busy.behind).into_iter().partition(Item::is_live);
                (busy.behind, busy.live) = (staying.into(), 0);
                self.behind -= leaving.len();
                out.extend(leaving);
            }
            if busy.open == 0 {
                free.push(key.clone());
            }
        }
        for key in free {
            self.pass_on(&key);
        }
        out.sort_by_key(Item::position);
        out
    }

    /// Takes out the deliveries of this key that are in here, in the order of commits; what came from the stream and is
    /// behind another such delivery, in flight or waiting elsewhere, stays. As [`Queue::take_live`], these may be written
    /// down.
    pub(super) fn take_key(&mut self, key: &ByteString) -> Vec<Item> {
        let mut out = Vec::new();
        let Some(busy) = self.keys.get_mut(key) else { return out };
        for list in [&mut self.urgent, &mut self.ready, &mut self.invalid] {
            if list.iter().any(|item| item.key() == Some(key)) {
                let (leaving, staying): (Vec<_>, Vec<_>) =
                    std::mem::take(list).into_iter().partition(|item| item.key() == Some(key));
                *list = staying.into();
                busy.open = busy.open.saturating_sub(u32::try_from(leaving.len()).unwrap_or(u32::MAX));
                busy.live = busy.live.saturating_sub(leaving.iter().filter(|item| item.is_live()).count());
                out.extend(leaving);
            }
        }
        let outstanding = busy.behind.iter().filter(|item| item.is_live()).count() < busy.live;
        let (leaving, staying): (Vec<_>, Vec<_>) =
            std::mem::take(&mut busy.behind).into_iter().partition(|item| !(outstanding && item.is_live()));
        busy.behind = staying.into();
        self.behind -= leaving.len();
        if !outstanding {
            busy.live = 0;
        }
        out.extend(leaving);
        if busy.open == 0 {
            self.pass_on(key);
        }
        out.sort_by_key(Item::position);
        out
    }

    /// A delivery of the head of this key is held for good.
    pub(super) fn halt(&mut self, key: Option<&ByteString>) {
        let newly = match key.and_then(|key| self.keys.get_mut(key)) {
            Some(busy) => !std::mem::replace(&mut busy.halted, true),
            None => true,
        };
        self.halted += usize::from(newly);
    }

    /// Deliveries that can be sent.
    pub(super) fn ready(&self) -> usize {
        self.urgent.len() + self.ready.len()
    }

    /// Deliveries that wait for the decision about rejected ones.
    pub(super) fn invalid(&self) -> usize {
        self.invalid.len()
    }

    /// All deliveries in here.
    pub(super) fn len(&self) -> usize {
        self.ready() + self.invalid() + self.behind
    }

    /// Busy keys.
    #[cfg(test)]
    pub(super) fn busy_keys(&self) -> usize {
        self.keys.len()
    }

    /// Halted keys; deliveries without a key count each.
    pub(super) fn halted(&self) -> usize {
        self.halted
    }

    /// Candidates for the oldest delivery from the stream in here. What has not had a turn stands in the order of
    /// commits, so that the first one of such a list is enough.
    pub(super) fn oldest(&self) -> impl Iterator<Item = &Work> {
        let first = self.ready.iter().find(|item| item.is_live());
        let turns = self.urgent.iter().chain(&self.invalid).chain(first).filter(|item| item.is_live());
        // But for dead letters of other sinks, which come whenever they do.
        let behind = self.keys.values().filter(|busy| busy.live > 0).filter_map(|busy| {
            let live = busy.behind.iter().filter(|item| item.is_live());
            live.min_by_key(|item| item.position())
        });
        turns.chain(behind).map(|item| &item.work)
    }

    /// Gives back memory of a burst that is over.
    pub(super) fn shrink(&mut self) {
        for list in [&mut self.urgent, &mut self.ready, &mut self.invalid] {
            list.shrink_to(KEPT_PLACES);
        }
        self.keys.shrink_to(KEPT_PLACES);
    }
}
