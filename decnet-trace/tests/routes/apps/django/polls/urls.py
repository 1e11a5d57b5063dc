from django.http import HttpResponse
from django.urls import path

app_name = "polls"
urlpatterns = [
    path("<int:number>/", lambda request, number: HttpResponse(number), name="one"),
    path("<slug:word>/results/", lambda request, word: HttpResponse(word)),
]
