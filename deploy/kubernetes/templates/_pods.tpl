{{/* The labels of a component's pods: prismoe.labels (dict "root" $ "component" "server") */}}
{{- define "prismoe.labels" -}}
app.kubernetes.io/name: prismoe
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* What no container may do. */}}
{{- define "prismoe.confined" -}}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The arguments of `prismoe serve`. */}}
{{- define "prismoe.arguments" -}}
- serve
- /checkpoints/{{ .Values.model }}
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
  preStop: {sleep: {seconds: 5}} # so that the router stops sending before the server stops taking
{{- end }}

{{/* What all server containers have in common: image, GPUs, folders. */}}
{{- define "prismoe.container" -}}
name: prismoe
image: {{ .Values.image | quote }}
env:
  - name: VLLM_HOST_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- if .Values.plainKernels }}
  - {name: PRISMOE_PLAIN_KERNELS, value: "1"}
{{- end }}
resources:
  requests: {cpu: {{ .Values.resources.cpu | quote }}, memory: {{ .Values.resources.memory }}}
  limits:
    cpu: {{ .Values.resources.cpu | quote }}
    memory: {{ .Values.resources.memory }}
    nvidia.com/gpu: {{ .Values.gpus }}
volumeMounts:
  - {name: checkpoints, mountPath: /checkpoints, readOnly: true}
  - {name: api-keys, mountPath: /run/secrets/prismoe, readOnly: true}
  - {name: home, mountPath: /home/vllm}
  - {name: tmp, mountPath: /tmp}
  - {name: shared-memory, mountPath: /dev/shm}
{{ include "prismoe.confined" . }}
{{- end }}

{{/* The rest of a server pod's spec: user, nodes, volumes. The user is that of the image. */}}
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
  - name: checkpoints
    persistentVolumeClaim: {claimName: {{ .Values.checkpointsClaim | quote }}, readOnly: true}
  - name: api-keys
    secret:
      secretName: {{ .Values.apiKeySecret | quote }}
      defaultMode: 0440
      items: [{key: api_keys, path: api_keys}]
  - {name: home, emptyDir: {}}
  - {name: tmp, emptyDir: {}}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}}
{{- end }}
