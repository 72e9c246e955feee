//! Fail points of the coordinator: nothing at all without the `failpoints` feature.

#[cfg(feature = "failpoints")]
pub(crate) use reseal_proto::fail::point;

/// Does nothing: this build has no fail points.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn point(_: &str) {}
