#!/usr/bin/env bash
# Deploys this folder to Azure ML: environment, model, endpoint, deployment, traffic. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

ENDPOINT=My-token-classification
DEPLOYMENT=my-token-classification

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

# True if `az ml ... show` finds the thing; a dry run shows the question and takes the answer to be no.
exists() {
    if $dry_run; then
        azml "$@"
        return 1
    fi
    azml "$@" 2>/dev/null
}

step() { printf '# %s\n' "$*"; }

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

step "environment My-token-classification-env, version 127813f06360"
exists environment show --name My-token-classification-env --version 127813f06360 ||
    azml environment create --file environment.yml

step "model My-token-classification-model, version 0123456789ab"
exists model show --name My-token-classification-model --version 0123456789ab ||
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

step "traffic"
azml online-endpoint update --name "$ENDPOINT" --traffic "$DEPLOYMENT=100"

step "done; ask it with:"
show online-endpoint invoke --name "$ENDPOINT" --request-file requests/sample.json
