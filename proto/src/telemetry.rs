//! Logs, traces and the W3C trace context, the same in both programs.
//!
//! Logs go to standard error, for people or as JSON. Spans go to an OTLP
//! collector when one is configured. A key or a token is never a field: the
//! types that hold them have no `Debug` that shows them.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider as _};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer as _};

/// The key of the W3C trace context in gRPC metadata and messages.
pub const TRACEPARENT: &str = "traceparent";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What to set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// "reseal-coordinator", "reseal-agent", "reseal".
    pub service: &'static str,
    /// Default filter, such as "info"; `RUST_LOG` overrides it.
    pub level: String,
    /// For people or for programs.
    pub format: LogFormat,
    /// "http://collector:4317"; none: spans stay in the process.
    pub otlp_endpoint: Option<String>,
    /// Share of traces begun here that are recorded, 0.0 to 1.0; a parent's decision is followed.
    pub sample_ratio: f64,
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter refused its endpoint.
    #[error("cannot export traces to {endpoint:?}: {message}")]
    Exporter {
        /// As configured.
        endpoint: String,
        /// What the exporter said.
        message: String,
    },
}

/// Flushes what is buffered when the program ends.
#[must_use = "spans are lost when this is dropped at once"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = provider.shutdown();
        }
    }
}

/// Installs the process's subscriber. Call once, inside the tokio runtime.
pub fn init(settings: &Settings) -> Result<Guard, TelemetryError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&settings.level));
    let provider =
        settings.otlp_endpoint.as_deref().map(|endpoint| exporter(settings, endpoint)).transpose()?;
    // What is logged and what is traced are two questions: a quiet log still has its trace.
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(settings.service))
            .with_filter(LevelFilter::INFO)
    });
    let lines = match settings.format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
            layer.with_ansi(ansi).with_target(false).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).with_filter(filter).boxed()
        }
    };
    let _ = tracing_subscriber::registry().with(traces).with(lines).try_init();
    Ok(Guard { provider })
}

/// The current span as a W3C `traceparent`; empty when nothing is traced.
pub fn traceparent() -> String {
    let context = tracing::Span::current().context();
    if !context.span().span_context().is_valid() {
        return String::new();
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT).unwrap_or_default()
}

/// Makes `span` a child of the remote span that `traceparent` names; a value
/// that does not parse is ignored.
pub fn continue_trace(span: &tracing::Span, traceparent: &str) {
    if traceparent.is_empty() {
        return;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    if context.span().span_context().is_valid() {
        let _ = span.set_parent(context);
    }
}

/// A gRPC request that carries the current span.
pub fn traced<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(value) = traceparent().parse() {
        request.metadata_mut().insert(TRACEPARENT, value);
    }
    request
}

/// The `traceparent` a request carries; empty when it has none.
pub fn traceparent_of(metadata: &tonic::metadata::MetadataMap) -> &str {
    metadata.get(TRACEPARENT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn exporter(settings: &Settings, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(
            |error| TelemetryError::Exporter { endpoint: endpoint.to_owned(), message: error.to_string() },
        )?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample_ratio)));
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(Resource::builder().with_service_name(settings.service).build())
        .build())
}
