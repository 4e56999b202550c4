#!/bin/bash
# serve.sh ROOT PROGRAMS: runs the control plane of the node in ROOT with the flags of its own static pods (Debian's etcd, and the
# kube-apiserver in the folder PROGRAMS), asks it with each kubeconfig that the node has (kubectl of the same folder), and prints for
# each question a line `== NAME CODE` followed by the answer. Run it in namespaces of its own (mounts, network, processes): nothing
# outlives it.
set -uo pipefail
root=$1 programs=$2
export HOME=/nonexistent
etcd=$(command -v etcd) log=$root/tmp
mkdir -p "$log"

# The node's own paths, address and names.
mount --bind "$root/etc" /etc
mount --bind "$root/var/lib" /var/lib
mount --bind "$root/root" /root
ip link set lo up
address=$(sed -n 's/.*--advertise-address=//p' /etc/kubernetes/manifests/kube-apiserver.yaml)
node=$(sed -n 's/.*--name=//p' /etc/kubernetes/manifests/etcd.yaml)
ip address add "$address/32" dev lo
ip route add default dev lo
{
  echo "127.0.0.1 localhost"
  echo "$address $node"
  sed -n 's|.*server: https://\([^:/]*\).*|\1|p' /etc/kubernetes/*.conf | grep -v '^[0-9.]*$' | sort -u | sed "s/^/$address /"
} >"$log/hosts"
mount --bind "$log/hosts" /etc/hosts

flags() { sed -n 's/^ *- \(--.*\)/\1/p' "/etc/kubernetes/manifests/$1.yaml"; }
mapfile -t of_etcd < <(flags etcd)
mapfile -t of_api_server < <(flags kube-apiserver)
"$etcd" "${of_etcd[@]}" >"$log/etcd" 2>&1 &
"$programs/kube-apiserver" "${of_api_server[@]}" >"$log/kube-apiserver" 2>&1 &
api_server=$!

ask() { # NAME KUBECONFIG ARGUMENTS...
  local name=$1 config=$2 answer code=0
  shift 2
  answer=$("$programs/kubectl" --request-timeout=10s --cache-dir="$log/cache" --kubeconfig "$config" "$@" 2>&1 </dev/null) || code=$?
  printf '== %s %s\n%s\n' "$name" "$code" "$answer"
}
logs() {
  echo "== logs 0"
  tail -n 40 "$log/etcd" "$log/kube-apiserver"
}

# Ready, or over: it gave up, or one of the two was shown a certificate that has expired.
for _ in $(seq 120); do
  ready=$(ask ready /etc/kubernetes/admin.conf get --raw /readyz)
  [ "${ready%%$'\n'*}" != "== ready 0" ] || break
  kill -0 "$api_server" 2>/dev/null || break
  ! grep -qi 'certificate has expired' "$log/etcd" "$log/kube-apiserver" || break
  sleep 0.5
done
printf '%s\n' "$ready"
if [ "${ready%%$'\n'*}" != "== ready 0" ]; then
  logs
  exit 0
fi

# In the kubelet's place, for the API server's question to it: answers only who comes with a client certificate of the cluster's CA.
# A kubelet without a serving pair makes one of its own.
pair=/var/lib/kubelet/pki/kubelet
if [ ! -s "$pair.crt" ]; then
  pair=$log/kubelet
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$pair.key" -out "$pair.crt" -days 1 -subj "/CN=$node" -config <(printf '[req]\ndistinguished_name=dn\n[dn]\n') 2>/dev/null
fi
openssl s_server -accept "$address:10250" -cert "$pair.crt" -key "$pair.key" -CAfile /etc/kubernetes/pki/ca.crt -Verify 1 \
  -verify_return_error -www >"$log/s_server" 2>&1 &

for config in /etc/kubernetes/admin.conf /root/.kube/config; do
  ask "$config nodes" "$config" get nodes -o name
  ask "$config marker" "$config" get configmap marker -o 'jsonpath={.data.proof}'
done
ask "controller-manager accounts" /etc/kubernetes/controller-manager.conf get serviceaccounts -A -o name
ask "controller-manager roles" /etc/kubernetes/controller-manager.conf create clusterrole any --verb=get --resource=pods
ask "scheduler pods" /etc/kubernetes/scheduler.conf get pods -A -o name
ask "scheduler secrets" /etc/kubernetes/scheduler.conf get secrets -A
ask "kubelet own node" /etc/kubernetes/kubelet.conf get node "$node" -o name
ask "kubelet secrets" /etc/kubernetes/kubelet.conf get secrets -A
ask "api server to kubelet" /etc/kubernetes/admin.conf get --raw "/api/v1/nodes/$node/proxy/"

# Who has no certificate is nobody, and who has an expired one is not let in: what was answered above was answered to the certificates.
# kubectl would ask for a user name.
echo "== nobody 0"
printf 'GET /api/v1/nodes HTTP/1.0\r\n\r\n' | timeout 20 openssl s_client -quiet -verify_return_error -CAfile /etc/kubernetes/pki/ca.crt \
  -connect "$address:6443" 2>/dev/null
echo
[ ! -e "$log/expired.conf" ] || ask expired "$log/expired.conf" get nodes
logs
