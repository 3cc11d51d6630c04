{{/* The labels of a component's pods: prismoe.labels (dict "root" $ "component" "server") */}}
{{- define "prismoe.labels" -}}
app.kubernetes.io/name: prismoe
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The restrictions of every container. */}}
{{- define "prismoe.confined" -}}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The arguments of `prismoe serve`. */}}
{{- define "prismoe.arguments" -}}
- serve
- {{ ternary (printf "/checkpoints/%s" .Values.model) .Values.model (ne .Values.checkpointsClaim "") | quote }}
- --served-model-name
- {{ .Values.model | quote }}
- --api-keys-file
- /run/secrets/prismoe/api_keys
- --tensor-parallel-size
- {{ mul .Values.gpus .Values.nodes | quote }}
{{- if gt (int .Values.nodes) 1 }}
- --distributed-executor-backend
- ray
{{- end }}
{{- range .Values.options }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{/* The probes of the container that answers requests. */}}
{{- define "prismoe.probes" -}}
ports:
  - {name: http, containerPort: 8000}
startupProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  failureThreshold: {{ mul .Values.startMinutes 12 }}
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 15
  timeoutSeconds: 10
  failureThreshold: 4
lifecycle:
  preStop: {sleep: {seconds: 5}} # so that the router stops sending requests before the server stops accepting them
{{- end }}

{{/* The common parts of all server containers: image, GPUs, folders. */}}
{{- define "prismoe.container" -}}
name: prismoe
image: {{ .Values.image | quote }}
env:
  - name: VLLM_HOST_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- $offline := ternary (dict "HF_HUB_OFFLINE" "1") dict (ne .Values.checkpointsClaim "") }}
{{- range $name, $text := merge (dict) .Values.environment $offline }}
  - {name: {{ $name }}, value: {{ $text | quote }}}
{{- end }}
{{- with .Values.hubTokenSecret }}
  - name: HF_TOKEN
    valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: hf_token}}
{{- end }}
resources:
  requests: {cpu: {{ .Values.resources.cpu | quote }}, memory: {{ .Values.resources.memory }}}
  limits:
    cpu: {{ .Values.resources.cpu | quote }}
    memory: {{ .Values.resources.memory }}
    nvidia.com/gpu: {{ .Values.gpus }}
volumeMounts:
{{- if .Values.checkpointsClaim }}
  - {name: checkpoints, mountPath: /checkpoints, readOnly: true}
{{- end }}
  - {name: api-keys, mountPath: /run/secrets/prismoe, readOnly: true}
  - {name: home, mountPath: /home/vllm}
{{- if .Values.cacheClaim }}
  - {name: cache, mountPath: /home/vllm/.cache/huggingface}
{{- end }}
  - {name: tmp, mountPath: /tmp}
  - {name: shared-memory, mountPath: /dev/shm}
{{ include "prismoe.confined" . }}
{{- end }}

{{/* The rest of a server pod's spec: user, nodes, volumes. The user is the image's. */}}
{{- define "prismoe.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 60
securityContext:
  runAsNonRoot: true
  runAsUser: 2000
  runAsGroup: 0
  fsGroup: 0
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
volumes:
{{- with .Values.checkpointsClaim }}
  - name: checkpoints
    persistentVolumeClaim: {claimName: {{ . | quote }}, readOnly: true}
{{- end }}
{{- with .Values.cacheClaim }}
  - name: cache
    persistentVolumeClaim: {claimName: {{ . | quote }}}
{{- end }}
  - name: api-keys
    secret:
      secretName: {{ .Values.apiKeySecret | quote }}
      defaultMode: 0440
      items: [{key: api_keys, path: api_keys}]
  - {name: home, emptyDir: {}}
  - {name: tmp, emptyDir: {}}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}}
{{- end }}

{{/* Ends a pod with a message if its image has no Ray. */}}
{{- define "prismoe.needsRay" -}}
if ! command -v ray > /dev/null; then echo "This image has no Ray, but nodes is {{ .Values.nodes }}: build the image with --build-arg RAY=ray==2.60.0" >&2; exit 1; fi
{{- end }}
