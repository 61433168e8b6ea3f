//! Where a lane gets its sink from.

use std::sync::Arc;

use walgate_sink::{BoxFuture, DynSink, ErasedFactory, ParsedConfig, SinkContext, SinkError};

/// A sink, or what makes one. A lane asks again, with pauses, until it has a sink.
#[derive(Clone)]
pub struct SinkSource(Kind);

#[derive(Clone)]
enum Kind {
    Factory { factory: Arc<dyn ErasedFactory>, config: Arc<ParsedConfig>, context: SinkContext },
    Connected(Arc<dyn DynSink>),
}

impl SinkSource {
    /// A sink that this factory makes.
    #[must_use]
    pub fn factory(factory: Arc<dyn ErasedFactory>, config: Arc<ParsedConfig>, context: SinkContext) -> Self {
        SinkSource(Kind::Factory { factory, config, context })
    }

    /// A sink that is there already.
    #[must_use]
    pub fn connected(sink: Arc<dyn DynSink>) -> Self {
        SinkSource(Kind::Connected(sink))
    }

    /// Makes the sink.
    pub(super) fn connect(&self) -> BoxFuture<'static, Result<Arc<dyn DynSink>, SinkError>> {
        match self.0.clone() {
            Kind::Connected(sink) => Box::pin(std::future::ready(Ok(sink))),
            Kind::Factory { factory, config, context } => {
                Box::pin(async move { factory.connect(&config, context).await })
            }
        }
    }
}
