#!/bin/sh
# @MARK@
# Renews what kubeadm made on this control plane and restarts its static pods. Run by kubeadm-certs-renew.timer.
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

admin=/etc/kubernetes/admin.conf
own=/root/.kube/config

# What is a copy of admin.conf stays one. A file that somebody has changed is left alone.
copy=no
if [ -f "$own" ] && cmp -s "$admin" "$own"; then copy=yes; fi

@RENEW@

if [ "$copy" = yes ]; then
    umask 077
    cp "$admin" "$own.new"
    mv "$own.new" "$own"
fi

# The identifier of the running container of a static pod.
running() {
    @LIST@
}

# The kubelet starts a static pod's container again when it has ended. One after the other, each only when the one before is back.
for name in etcd kube-apiserver kube-controller-manager kube-scheduler; do
    old=$(running "$name")
    # An external etcd has none.
    [ -n "$old" ] || continue
    for id in $old; do
        @STOP@ "$id" >/dev/null
    done
    waited=0
    while new=$(running "$name"); [ -z "$new" ] || [ "$new" = "$old" ]; do
        if [ "$waited" -ge 180 ]; then
            echo "$name has not come back; the pods after it were not restarted" >&2
            exit 1
        fi
        sleep 5
        waited=$((waited + 5))
    done
    echo "$name restarted"
done
