//! What an operator changes of the cluster as a whole: its spec, tokens, unlock key and root.
//!
//! Chance is drawn by the leader before the write, so the same write gives the same cluster on every
//! try. The object's version moves with every number that is given; what counts for "update out of
//! sequence" is the last change that a user asked for (`Cluster.changed_after`).
//!
//! Source: `SwarmKit`, manager/controlapi/{cluster,`ca_rotation`}.go.

use shoal_api::{
    Cluster, ClusterSpec, JoinTokens, RootCa, SigningCa, UpdateClusterRequest, UpdateClusterWrite,
    token, validate,
};

use crate::control::Answer;
use crate::draft::Draft;
use crate::refusal::Refusal;

/// Stages an update of the cluster.
pub(crate) fn update(
    draft: &mut Draft<'_>,
    mut write: UpdateClusterWrite,
) -> Result<Answer, Refusal> {
    let request = write.request.take().ok_or(Refusal::Empty)?;
    let mut cluster = draft.cluster().map(|cluster| Cluster::clone(cluster));
    let cluster = cluster.as_mut().ok_or(Refusal::NoCluster)?;
    if request.version <= cluster.changed_after || request.version > cluster.version() {
        return Err(Refusal::OutOfSequence);
    }
    let mut spec = request.spec.clone().ok_or(Refusal::Empty)?;
    if spec.name.is_empty() {
        spec.name = validate::CLUSTER_NAME.into();
    }
    validate::cluster_spec(&spec)?;
    cluster.unlock_key = unlock_key(cluster, &spec, &request, &write)?;
    let mut root = cluster.root_ca.clone().unwrap_or_default();
    roll_over(&mut root, &spec, &request, &mut write)?;
    check_signer(&root, &spec)?;
    // Who goes on counting from a spec that forgot the count would ask for what is done already.
    if spec.force_rotate() < root.last_forced {
        spec.ca.get_or_insert_default().force_rotate = root.last_forced;
    }
    rotate_tokens(&mut root, &request, &write)?;
    cluster.root_ca = Some(root);
    cluster.spec = Some(spec);
    cluster.changed_after = cluster.version();
    draft.put(cluster.clone());
    Ok(Answer::Cluster)
}

/// The unlock key after the update.
fn unlock_key(
    cluster: &Cluster,
    spec: &ClusterSpec,
    request: &UpdateClusterRequest,
    write: &UpdateClusterWrite,
) -> Result<String, Refusal> {
    if !spec.autolock {
        return if request.rotate_unlock_key {
            Err(Refusal::NoAutolock)
        } else {
            Ok(String::new())
        };
    }
    if !request.rotate_unlock_key && !cluster.unlock_key.is_empty() {
        return Ok(cluster.unlock_key.clone());
    }
    if write.unlock_key.is_empty() { Err(Refusal::Empty) } else { Ok(write.unlock_key.clone()) }
}

/// Begins a roll-over to a new root where the spec asks for one. One that is under way is superseded:
/// what was issued by then carries a certificate by the old root, which stays trusted. So it can
/// also be called off, by the root that is in use: that one's key comes or goes as it is given.
fn roll_over(
    root: &mut RootCa,
    spec: &ClusterSpec,
    request: &UpdateClusterRequest,
    write: &mut UpdateClusterWrite,
) -> Result<(), Refusal> {
    if spec.force_rotate() <= root.last_forced {
        return if request.root.is_some() { Err(Refusal::RootNotForced) } else { Ok(()) };
    }
    let rotation = write.rotation.take().ok_or(Refusal::Empty)?;
    // Meanwhile another one came to its end.
    if write.signed_by != root.digest {
        return Err(Refusal::OutOfSequence);
    }
    let next = rotation.next.as_ref().filter(|next| !next.cert_pem.is_empty());
    let next = next.ok_or(Refusal::Empty)?;
    if rotation.digest == root.digest {
        root.signing = Some(next.clone());
        root.rotation = None;
    } else if rotation.cross_signed_pem.is_empty() || token::compose(&rotation.digest, "").is_none()
    {
        return Err(Refusal::Empty);
    } else {
        root.rotation = Some(rotation);
    }
    root.last_forced = spec.force_rotate();
    Ok(())
}

/// Somebody must be able to sign certificates under the root that issues now.
fn check_signer(root: &RootCa, spec: &ClusterSpec) -> Result<(), Refusal> {
    let next = root.rotation.as_ref().map(|rotation| rotation.next.as_ref());
    let issuer: Option<&SigningCa> = next.unwrap_or(root.signing.as_ref());
    let has_key = issuer.is_some_and(|issuer| !issuer.key_pem.is_empty());
    let external = spec.ca.as_ref().is_some_and(|ca| !ca.external_cas.is_empty());
    if has_key || external { Ok(()) } else { Err(Refusal::NoSigner) }
}

fn rotate_tokens(
    root: &mut RootCa,
    request: &UpdateClusterRequest,
    write: &UpdateClusterWrite,
) -> Result<(), Refusal> {
    let digest = root.digest.clone();
    let fresh = |secret: &str| {
        let secret = Some(secret).filter(|secret| !secret.is_empty() && !secret.contains('-'));
        secret.and_then(|secret| token::compose(&digest, secret)).ok_or(Refusal::Empty)
    };
    let mut tokens = root.tokens.clone().unwrap_or_default();
    if request.rotate_worker_token {
        tokens.worker = fresh(&write.worker_secret)?;
    }
    if request.rotate_manager_token {
        tokens.manager = fresh(&write.manager_secret)?;
    }
    root.tokens = Some(tokens);
    Ok(())
}

/// The tokens of a new root: their secrets stay, so that whoever was told one knows most of it, and
/// a newcomer with the old text is told that the root is another.
pub(crate) fn tokens_under(tokens: &JoinTokens, digest: &str) -> Option<JoinTokens> {
    let moved = |token: &str| token::compose(digest, token::secret_of(token)?);
    Some(JoinTokens { worker: moved(&tokens.worker)?, manager: moved(&tokens.manager)? })
}
