//! Compiles the protos without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["specs", "objects", "store", "control", "dispatcher", "manager", "local"].map(|name| {
            println!("cargo::rerun-if-changed=proto/shoal/v1/{name}.proto");
            format!("proto/shoal/v1/{name}.proto")
        });
    let set = protox::compile(files, ["proto"])?;
    // Ordered maps: equal objects have equal bytes, so that every manager's snapshot is the same.
    tonic_prost_build::configure().btree_map(".").compile_fds(set)?;
    Ok(())
}
