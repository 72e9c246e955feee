//! Compiles the `.proto` files with protox: no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["types", "enrolment", "agent", "evidence", "operator"].map(|name| format!("reseal/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::QuietCodec")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
