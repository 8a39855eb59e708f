//! Compiles the protos without protoc.

/// Messages that carry a key, a token or a secret: `src/secrets.rs` writes their `Debug`.
const SECRETS: [&str; 12] = [
    ".shoal.v1.BackupPiece",
    ".shoal.v1.BackupRequest",
    ".shoal.v1.Cluster",
    ".shoal.v1.GetUnlockKeyResponse",
    ".shoal.v1.InitResponse",
    ".shoal.v1.JoinClusterRequest",
    ".shoal.v1.JoinRequest",
    ".shoal.v1.JoinTokens",
    ".shoal.v1.RestoreRequest",
    ".shoal.v1.SigningCa",
    ".shoal.v1.UnlockRequest",
    ".shoal.v1.UpdateClusterWrite",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["specs", "objects", "store", "control", "dispatcher", "manager", "local"].map(|name| {
            println!("cargo::rerun-if-changed=proto/shoal/v1/{name}.proto");
            format!("proto/shoal/v1/{name}.proto")
        });
    let set = protox::compile(files, ["proto"])?;
    // Ordered maps: equal objects have equal bytes, so that every manager's snapshot is the same.
    tonic_prost_build::configure().btree_map(".").skip_debug(SECRETS).compile_fds(set)?;
    Ok(())
}
