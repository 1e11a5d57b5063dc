from fastapi import APIRouter

from . import orders, users

router = APIRouter()
router.include_router(users.router, prefix="/users", tags=["users"])
for part in (orders.router,):
    router.include_router(part)
