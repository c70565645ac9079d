#!/usr/bin/env bash
# Deploys this folder to Azure ML: environment, model, endpoint, deployment, traffic. Safe to run again.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell, as `sh deploy.sh` does
set -euo pipefail
here=${BASH_SOURCE[0]}
while [[ -L $here ]]; do # called through a link: its files lie where it leads
    target=$(readlink "$here")
    [[ $target == /* ]] && here=$target || here=$(dirname "$here")/$target
done
cd "$(dirname "$here")"

ENDPOINT=My-fill-mask
DEPLOYMENT=my-fill-mask

usage() {
    cat <<'USAGE'
Usage: ./deploy.sh [--resource-group NAME] [--workspace-name NAME] [--subscription ID] [--dry-run]

Without flags the defaults of `az configure --defaults group=... workspace=...` are used.
--dry-run prints the commands and runs none of them.
USAGE
}

scope=()
dry_run=false
while (($#)); do
    case $1 in
    -g | --resource-group | -w | --workspace-name | --subscription)
        if (($# < 2)); then
            echo "deploy.sh: $1 needs a value" >&2
            exit 2
        fi
        case $1 in
        -g) scope+=(--resource-group "$2") ;;
        -w) scope+=(--workspace-name "$2") ;;
        *) scope+=("$1" "$2") ;;
        esac
        shift 2
        ;;
    --dry-run)
        dry_run=true
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "deploy.sh: unknown option $1" >&2
        usage >&2
        exit 2
        ;;
    esac
done

# Prints `az ml ...` in the chosen workspace, quoted for a shell.
show() {
    local line
    printf -v line '%q ' az ml "$@" ${scope[@]+"${scope[@]}"}
    echo "${line% }"
}

# Runs it, or in a dry run prints it.
azml() {
    if $dry_run; then
        show "$@"
    else
        az ml "$@" ${scope[@]+"${scope[@]}"} --output none
    fi
}

# True if `az ml ... show` finds the thing; a dry run shows the question and takes the answer to be no. Any answer but
# "there" and "not there", such as a missing role, ends the script: what is not seen must not be made anew.
exists() {
    local said
    if $dry_run; then
        azml "$@"
        return 1
    fi
    said=$(azml "$@" 2>&1 >/dev/null) && return 0
    if grep -qiE 'AuthorizationFailed|Forbidden|does not have authorization' <<<"$said" ||
        ! grep -qiE 'not ?found|does not exist|could not be found|no .* with name' <<<"$said"; then
        printf '%s\n' "$said" >&2
        printf 'deploy.sh: whether it is there could not be told: az ml %s\n' "$1 $2" >&2
        exit 1
    fi
    return 1
}

step() { printf '# %s\n' "$*"; }

refuse() {
    printf 'deploy.sh: %s; nothing was uploaded. Generate the bundle again, or restore its files.\n' "$*" >&2
    exit 1
}

# SHA-256 of standard input or of files, as `hash  path`.
sha256() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$@"
    else
        shasum -a 256 "$@"
    fi
}

# Refuses unless every file is as manifest.json lists it, and nothing else is in the folders that are uploaded.
verify() {
    local LC_ALL=C listed known found other
    export LC_ALL
    listed=$(sed -n 's/^    "\(.*\)": "\([0-9a-f]\{64\}\)",\{0,1\}$/\2  \1/p' manifest.json | sed 's/\\"/"/g' | sort)
    grep -qF "\"bundle\": \"$(printf '%s\n' "$listed" | sha256 | cut -c 1-64)\"" manifest.json ||
        refuse "manifest.json is not as it was generated"
    other=$(find . ! -type d ! -type f)
    [[ -z $other ]] || refuse "a bundle holds no links, devices or pipes: ${other%%$'\n'*}"
    known=$(printf '%s\n' "$listed" | cut -c 67- | sort)
    found=$(find . -type f | sed 's|^\./||' | sort)
    other=$(comm -13 <(printf '%s\n' "$found") <(printf '%s\n' "$known"))
    [[ -z $other ]] || refuse "a file is missing: ${other%%$'\n'*}"
    other=$(comm -23 <(printf '%s\n' "$found") <(printf '%s\n' "$known") | sed -n '/^code\//p;/^model\//p;/^environment\//p')
    [[ -z $other ]] || refuse "a file was added: ${other%%$'\n'*}"
    found=$(printf '%s\n' "$known" | tr '\n' '\0' | (export -f sha256; xargs -0 bash -c 'sha256 -- "$@"' sha256) | sort)
    other=$(comm -13 <(printf '%s\n' "$found") <(printf '%s\n' "$listed") | cut -c 67-)
    [[ -z $other ]] || refuse "a file was edited: ${other%%$'\n'*}"
}

verify

if ! $dry_run; then
    command -v az >/dev/null || {
        echo "deploy.sh: the Azure CLI is missing; see https://aka.ms/azure-cli" >&2
        exit 1
    }
    az extension show --name ml --output none 2>/dev/null || {
        echo "deploy.sh: the extension is missing; run: az extension add --name ml" >&2
        exit 1
    }
    az account show --output none 2>/dev/null || {
        echo "deploy.sh: not logged in; run: az login" >&2
        exit 1
    }
fi

step "environment My-fill-mask-env, version 45e8f68b81f7"
exists environment show --name My-fill-mask-env --version 45e8f68b81f7 ||
    azml environment create --file environment.yml

step "model My-fill-mask-model, version 0123456789ab"
exists model show --name My-fill-mask-model --version 0123456789ab ||
    azml model create --file model.yml

step "endpoint $ENDPOINT"
exists online-endpoint show --name "$ENDPOINT" ||
    azml online-endpoint create --file endpoint.yml

step "deployment $DEPLOYMENT"
if exists online-deployment show --name "$DEPLOYMENT" --endpoint-name "$ENDPOINT"; then
    verb=update
else
    verb=create
fi
azml online-deployment "$verb" --file deployment.yml || {
    echo "deploy.sh: the deployment failed; its log:" >&2
    show online-deployment get-logs --name "$DEPLOYMENT" --endpoint-name "$ENDPOINT" --lines 200 >&2
    exit 1
}

# The new deployment is asked itself, whatever the traffic; its routes take a moment to work.
answers() {
    azml online-endpoint invoke --name "$ENDPOINT" --deployment-name "$DEPLOYMENT" \
        --request-file requests/sample.json
}

step "sample request"
for attempt in 1 2 3; do
    answers && break
    if ((attempt == 3)); then
        echo "deploy.sh: the sample request was not answered, so the traffic stays as it is; the log:" >&2
        show online-deployment get-logs --name "$DEPLOYMENT" --endpoint-name "$ENDPOINT" --lines 200 >&2
        exit 1
    fi
    sleep "${DEPLOY_PAUSE:-10}"
done

step "traffic"
azml online-endpoint update --name "$ENDPOINT" --traffic "$DEPLOYMENT=100"

step "done; ask it with:"
show online-endpoint invoke --name "$ENDPOINT" --request-file requests/sample.json
