//! One batch over one connection: sent in order, in one go, and answered in any order.
//!
//! It runs on the connection's own thread. From another one, each message would wake that thread, and each answer would
//! wake the sink's: two switches for an event, which cost more than everything else that is done for it.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use walgate_sink::{Batch, Delivery, DeliveryReport, Outcome, Secret};

use crate::{
    NoStream,
    classify::Published,
    generation::{Generation, Notices},
    message::{Message, Messages},
    replies::{Answer, Replies},
};

/// What every batch is published with.
#[derive(Debug)]
pub(crate) struct Publisher {
    pub(crate) messages: Messages,
    pub(crate) no_stream: NoStream,
    pub(crate) timeout: Duration,
    pub(crate) secrets: Vec<Secret>,
}

impl Publisher {
    fn published<'a>(&'a self, delivery: &'a Delivery, server: &'a str) -> Published<'a> {
        let subject = delivery.target.get("subject").map_or("", |subject| subject);
        Published {
            subject,
            fixed: self.messages.is_fixed(subject),
            server,
            no_stream: self.no_stream,
            timeout: self.timeout,
            secrets: &self.secrets,
        }
    }
}

/// The messages of a batch, each made when it is sent: the server works on the first while the last is made. What cannot
/// be one is rejected.
pub(crate) struct Building {
    publisher: Arc<Publisher>,
    batch: Batch,
    report: DeliveryReport,
    next: usize,
}

impl Building {
    pub(crate) fn new(publisher: &Arc<Publisher>, batch: &Batch, report: &DeliveryReport) -> Self {
        Building { publisher: Arc::clone(publisher), batch: batch.clone(), report: report.clone(), next: 0 }
    }
}

impl Iterator for Building {
    type Item = (usize, Message);

    fn next(&mut self) -> Option<(usize, Message)> {
        loop {
            let index = self.next;
            let delivery = self.batch.get(index)?;
            self.next += 1;
            match self.publisher.messages.build(delivery) {
                Ok(message) => return Some((index, message)),
                Err(rejection) => self.report.rejected(index, rejection),
            }
        }
    }
}

/// A batch under way.
pub(crate) struct Flight {
    publisher: Arc<Publisher>,
    generation: Arc<Generation>,
    batch: Batch,
    report: DeliveryReport,
    /// By index: sent, and not answered.
    waiting: Vec<bool>,
    outstanding: usize,
}

impl Flight {
    pub(crate) fn new(
        publisher: &Arc<Publisher>,
        generation: &Arc<Generation>,
        batch: &Batch,
        report: &DeliveryReport,
    ) -> Self {
        Flight {
            publisher: Arc::clone(publisher),
            generation: Arc::clone(generation),
            batch: batch.clone(),
            report: report.clone(),
            waiting: vec![false; batch.len()],
            outstanding: 0,
        }
    }

    /// Sends everything, in order, and takes in the acknowledgements as they come. True if every message has its answer,
    /// so that nothing of the batch is left in the connection.
    pub(crate) async fn fly(mut self, messages: impl Iterator<Item = (usize, Message)>, deadline: Instant) -> bool {
        let mut timeout = pin!(sleep_until(deadline));
        let Some(Some(mut replies)) = before(&mut timeout, self.generation.replies()).await else { return false };
        replies.begin(self.batch.len());
        let sure = self.publish(messages, &mut replies, timeout).await.is_some();
        if sure {
            self.generation.keep(replies);
        }
        sure
    }

    async fn publish(
        &mut self,
        messages: impl Iterator<Item = (usize, Message)>,
        replies: &mut Replies,
        mut timeout: Pin<&mut Sleep>,
    ) -> Option<()> {
        let mut notices = self.generation.notices();
        let denied = notices.borrow_and_update().denied();
        let max_payload = self.generation.client.max_payload();
        for (index, message) in messages {
            if let Err(rejection) = message.check_size(max_payload, &self.generation.server) {
                self.report.rejected(index, rejection);
                continue;
            }
            let reply = replies.subject(index);
            let Message { subject, headers, payload, .. } = message;
            let sending = self.generation.client.publish_with_reply_and_headers(subject, reply, headers, payload);
            match before(&mut timeout, sending).await {
                Some(Ok(())) => self.sent(index),
                // Nothing was sent; what follows would come before it.
                Some(Err(error)) => {
                    self.mark(index, |published| published.unsent(&error));
                    return None;
                }
                None => {
                    self.mark(index, |published| published.silent());
                    return None;
                }
            }
        }
        let mut sure = true;
        while self.outstanding > 0 {
            // Most answers come in crowds: one look at the channel is cheaper than a wait for three things at once.
            if let Some((index, answer)) = replies.ready() {
                sure &= self.take_in(index, &answer);
                continue;
            }
            tokio::select! {
                biased;
                answer = replies.next() => match answer {
                    Some((index, answer)) => sure &= self.take_in(index, &answer),
                    None => return None,
                },
                changed = notices.changed() => {
                    let said = notices.borrow_and_update().clone();
                    self.heed(&said, denied);
                    if changed.is_err() || said.broken.is_some() {
                        // What has come before the end counts.
                        while let Some((index, answer)) = replies.ready() {
                            self.take_in(index, &answer);
                        }
                        return None;
                    }
                }
                () = timeout.as_mut() => {
                    for index in self.unanswered() {
                        self.mark(index, |published| published.silent());
                    }
                    return None;
                }
            }
        }
        sure.then_some(())
    }

    fn sent(&mut self, index: usize) {
        if let Some(place) = self.waiting.get_mut(index) {
            *place = true;
            self.outstanding += 1;
        }
    }

    fn unanswered(&self) -> Vec<usize> {
        self.waiting.iter().enumerate().filter_map(|(index, waits)| waits.then_some(index)).collect()
    }

    /// Whether it was waited for until now.
    fn answered(&mut self, index: usize) -> bool {
        let waited = self.waiting.get_mut(index).is_some_and(std::mem::take);
        self.outstanding -= usize::from(waited);
        waited
    }

    fn mark(&self, index: usize, outcome: impl FnOnce(&Published<'_>) -> Outcome) {
        if let Some(delivery) = self.batch.get(index) {
            self.report.mark(index, outcome(&self.publisher.published(delivery, &self.generation.server)));
        }
    }

    /// Takes in an answer. False where it leaves a doubt about the connection.
    fn take_in(&mut self, index: usize, answer: &Answer) -> bool {
        if self.answered(index) {
            match answer {
                Answer::Stored { duplicate } => {
                    self.report.mark(index, Outcome::Acknowledged { duplicate: *duplicate });
                }
                Answer::Refused(error) => self.mark(index, |published| published.refused(error)),
                Answer::NoResponders => self.mark(index, |published| published.unheard()),
                Answer::Nonsense(text) => self.mark(index, |published| published.nonsense(text)),
            }
        }
        !matches!(answer, Answer::Nonsense(_))
    }

    /// Marks what the server has refused without an answer.
    fn heed(&mut self, said: &Notices, since: u64) {
        if said.denied() == since {
            return;
        }
        for index in self.unanswered() {
            let denied =
                |delivery: &Delivery| delivery.target.get("subject").is_some_and(|subject| said.denies(subject, since));
            if self.batch.get(index).is_some_and(denied) && self.answered(index) {
                self.mark(index, |published| published.denied());
            }
        }
    }
}

/// What comes of it before the time is over; `None` if nothing does.
async fn before<T>(timeout: &mut Pin<&mut Sleep>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = timeout.as_mut() => None,
    }
}
