//! The gRPC codec: protobuf, with buffers for many quiet streams.
//!
//! tonic keeps a buffer per direction for as long as a stream is open, 8 KiB
//! each unless told otherwise. Ten thousand agents say nothing most of the
//! time; their buffers start small and grow when there is something to say.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Bytes a buffer starts with.
const START: usize = 512;
/// Bytes after which what is encoded is passed on.
const YIELD: usize = 32 * 1024;

/// Protobuf over small buffers; named in `build.rs`.
#[derive(Debug)]
pub struct QuietCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for QuietCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for QuietCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(START, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(START, YIELD))
    }
}
