//! The lanes as the gateway owns them: started together, watched, stopped together.

use std::sync::Arc;

use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    checkpoint::Checkpoint,
    lane::{self, LaneEnd, LaneHandle, LaneSettings, Observer, SinkSource},
};

/// One sink and how it is driven.
pub struct LanePlan {
    /// The sink's name.
    pub name: String,
    /// The sink's kind.
    pub kind: String,
    /// What makes the sink.
    pub source: SinkSource,
    /// How it is driven.
    pub settings: LaneSettings,
    /// What is told of it.
    pub observer: Arc<dyn Observer>,
}

/// A lane as status shows it.
#[derive(Clone)]
pub struct NamedLane {
    /// The sink's name.
    pub name: String,
    /// The sink's kind.
    pub kind: String,
    /// The lane.
    pub handle: LaneHandle,
}

/// The running lanes, in the order of the configuration.
pub struct Lanes {
    named: Vec<NamedLane>,
    stop: watch::Sender<Option<Instant>>,
    tasks: JoinSet<(String, Ending)>,
}

/// Why a lane ended before it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// Its receiver has gone for good: an orderly end.
    Closed,
    /// Its task panicked: a fault in walgate, after which nothing of this process is to be trusted.
    Panicked,
}

impl Lanes {
    /// Starts every lane.
    pub fn start(plans: Vec<LanePlan>, checkpoint: &Checkpoint) -> Self {
        let stop = watch::Sender::new(None);
        let mut tasks = JoinSet::new();
        let named = plans
            .into_iter()
            .map(|LanePlan { name, kind, source, settings, observer }| {
                let (handle, task) =
                    lane::spawn(name.clone(), source, settings, checkpoint.clone(), observer, stop.subscribe());
                let sink = name.clone();
                tasks.spawn(async move {
                    let ending = match task.await {
                        Ok(LaneEnd::Stopped) => Ending::Stopped,
                        Ok(LaneEnd::SinkClosed) => Ending::Closed,
                        Err(_) => Ending::Panicked,
                    };
                    (sink, ending)
                });
                NamedLane { name, kind, handle }
            })
            .collect();
        Lanes { named, stop, tasks }
    }

    /// The lanes for status.
    pub fn named(&self) -> &[NamedLane] {
        &self.named
    }

    /// The lanes for pushing, by their place.
    pub fn handles(&self) -> Vec<LaneHandle> {
        self.named.iter().map(|lane| lane.handle.clone()).collect()
    }

    /// Waits for the first lane that ends by itself.
    pub async fn ended(&mut self) -> (String, Ending) {
        match self.tasks.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => ("?".to_owned(), Ending::Panicked),
            None => std::future::pending().await,
        }
    }

    /// Ends every lane: batches in flight may go on until `deadline`. Waits for all of them.
    pub async fn stop(mut self, deadline: Instant) {
        self.stop.send_replace(Some(deadline));
        while self.tasks.join_next().await.is_some() {}
    }
}
